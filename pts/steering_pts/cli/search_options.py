"""The options of `pts discover` that say how pivots are searched for: every setting of the search is one."""

from __future__ import annotations

from typing import Annotated

import typer

from steering_pts.settings import SearchSettings

DEFAULT = SearchSettings()
_PANEL = "Search"
_FINE = "Search, in detail"

UnitOption = Annotated[
    str, typer.Option("--unit", help="What can be pivotal: token or sentence.", rich_help_panel=_PANEL)
]
Tau = Annotated[
    float, typer.Option(help="Effect on P(success) that makes a token pivotal.", rich_help_panel=_PANEL)
]
Delta0 = Annotated[
    float,
    typer.Option(help="Effect that confirmation must exceed: the guarantee's bound.", rich_help_panel=_PANEL),
]
Fdr = Annotated[
    float,
    typer.Option(help="Level of the correction over all nominees of the run.", rich_help_panel=_PANEL),
]
Budget = Annotated[
    int,
    typer.Option(
        help="Rollouts for each searched completion (long ones in proportion), on the average of the run.",
        rich_help_panel=_PANEL,
    ),
]
BaseRollouts = Annotated[
    int,
    typer.Option(help="Completions per problem, to see which are undecided.", rich_help_panel=_PANEL),
]
CompletionsPerProblem = Annotated[
    int, typer.Option(help="Completions searched of each undecided problem.", rich_help_panel=_PANEL)
]
Low = Annotated[
    float,
    typer.Option(help="A problem is undecided when P(success) is above this.", rich_help_panel=_FINE),
]
High = Annotated[float, typer.Option(help="… and below this.", rich_help_panel=_FINE)]
ExploreShare = Annotated[
    float, typer.Option(help="Most of the budget that exploration may take.", rich_help_panel=_FINE)
]
ExploreFirst = Annotated[
    int,
    typer.Option(help="First alternatives of every candidate; 0 is automatic.", rich_help_panel=_FINE),
]
ExploreBatch = Annotated[
    int, typer.Option(help="Rollouts of an ambiguous candidate at a time.", rich_help_panel=_FINE)
]
ExploreMost = Annotated[
    int,
    typer.Option(help="Most exploring rollouts of one candidate.", rich_help_panel=_FINE),
]
ExploreWidest = Annotated[
    int, typer.Option(help="Candidates of a completion in one round.", rich_help_panel=_FINE)
]
Ambiguity = Annotated[
    float,
    typer.Option(help="Explore until P(pivotal) is this near to 0 or 1.", rich_help_panel=_FINE),
]
Rho = Annotated[
    float, typer.Option(help="Share of candidates with an effect of any size.", rich_help_panel=_FINE)
]
Sd = Annotated[float, typer.Option(help="Size of the other candidates' effects.", rich_help_panel=_FINE)]
LearnPrior = Annotated[
    bool, typer.Option(help="Learn rho and sd from the run itself.", rich_help_panel=_FINE)
]
PriorWeight = Annotated[
    float,
    typer.Option(help="Candidates that the given rho and sd count for.", rich_help_panel=_FINE),
]
Nominate = Annotated[
    float, typer.Option(help="P(pivotal) from which a candidate is confirmed.", rich_help_panel=_FINE)
]
Power = Annotated[
    float, typer.Option(help="Chance of seeing the effect that was explored.", rich_help_panel=_FINE)
]
ConfirmLeast = Annotated[
    int, typer.Option(help="Fewest fresh rollouts on each side of a nominee.", rich_help_panel=_FINE)
]
ConfirmMost = Annotated[int, typer.Option(help="Most of them.", rich_help_panel=_FINE)]
