"""The steps of a run's completions, and which of them are pivotal.

A step is a place: what counts is the decision variance of what can come there (docs/probes.md), whatever token came
in the completion at hand. Three things may be known of it:

- Its most likely token is so likely that no outcome of the others can make it pivotal. One teacher-forced pass
  certifies that, without rollouts; it is so for most steps.
- Rollouts of the run branch there. All samples of a problem are put together by prefix: a completion or rollout is an
  exact draw of the success after each of its tokens, from the one on that it drew freely. What follows the own token of
  a completion that was searched is also told by rollouts that leave it later; for that the search's model of the value
  curve is asked, without the draws at the step itself, which speak for themselves.
- Neither: the step is left out of what is learned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from steering_engine.loading import LoadedModel
from steering_pts.errors import LedgerError
from steering_pts.ledger import LedgerReader
from steering_pts.search.chain import StepPrior
from steering_pts.seeds import derive_seed
from steering_pts.settings import SamplerSettings
from steering_pts.vectors.branches import Branches, branches_of
from steering_pts.vectors.draws import StepDraws, draws_of_run
from steering_pts.vectors.trie import PrefixTrie
from steering_pts.vectors.variance import Evidence, evidence, learned_share

LEAST_BRANCH = 0.005
"""Tokens less likely than this are not looked at one by one."""
SURELY = 0.95
"""A step is taken for pivotal when that is at least this probable."""
HARDLY = 0.02
"""A step is taken for ordinary when it is pivotal with at most this probability; the search gives up there as well."""

_RHO_WEIGHT = 10.0  # open steps that the settings' share of steps that matter counts for when it is learned


class StepLabel(StrEnum):
    """What a step is, as far as the run knows."""

    PIVOTAL = "pivotal"
    ORDINARY = "ordinary"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class LabelledStep:
    """A step of a run.

    Attributes:
        problem_id: Its problem.
        completion: Index of the first completion that it belongs to, among those of the table.
        position: Index of the generated token that it predicts.
        label: What it is.
        certified: Whether its probabilities alone say so.
    """

    problem_id: str
    completion: int
    position: int
    label: StepLabel
    certified: bool


@dataclass(frozen=True, eq=False)
class StepTable:
    """All steps of a run's completions, each once, in the order of the ledger.

    Attributes:
        completions: Prompt ids and generated ids of each.
        steps: The steps.
    """

    completions: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    steps: tuple[LabelledStep, ...]
    _trie: PrefixTrie
    _step_of: Mapping[int, int] = field(repr=False)

    def find(self, prefix_ids: Sequence[int]) -> int | None:
        """Index of the step after a prefix (prompt and generated ids); None where no completion has it."""
        node = self._trie.find(prefix_ids)
        return None if node is None else self._step_of.get(node)

    def targets(self) -> list[bool | None]:
        """For each step whether it is pivotal; None where that is unknown."""
        known = {StepLabel.PIVOTAL: True, StepLabel.ORDINARY: False}
        return [known.get(step.label) for step in self.steps]

    def group_targets(
        self, own: Iterable[Sequence[int]], others: Iterable[Sequence[int]] = ()
    ) -> list[bool | None]:
        """For each step whether it is one of a group's decisions.

        Other decisions of the run and ordinary steps are not; what else is pivotal or may be is of no known group.

        Args:
            own: Prefixes of the group's decisions.
            others: Prefixes of the run's other decisions.
        """
        targets = [False if step.label is StepLabel.ORDINARY else None for step in self.steps]
        values: list[bool | None] = list(targets)
        for prefixes, value in ((others, False), (own, True)):
            for prefix in prefixes:
                if (index := self.find(prefix)) is not None:
                    values[index] = value
        return values

    @property
    def problem_ids(self) -> list[str]:
        """The problem of each step."""
        return [step.problem_id for step in self.steps]

    def count(self, label: StepLabel) -> int:
        """How many steps have a label."""
        return sum(step.label is label for step in self.steps)


def steps_of_run(ledger: LedgerReader, loaded: LoadedModel) -> StepTable:
    """The steps of a run's completions with their labels.

    Args:
        ledger: A finished run.
        loaded: Its model, for the probabilities.

    Raises:
        LedgerError: The ledger can't be read, or lacks a setting of the search or the sampler.
    """
    tau, rho, sd = (_number(ledger, f"search.{name}") for name in ("tau", "rho", "sd"))
    temperature, top_p, min_p = (
        _number(ledger, f"sampler.{name}") for name in ("temperature", "top_p", "min_p")
    )
    sampler = SamplerSettings(temperature, top_p, int(_number(ledger, "sampler.top_k")), min_p=min_p)
    records = ledger.completions()
    pairs = [(record.prompt_ids, record.ids) for record in records]
    branches = branches_of(loaded, pairs, sampler, LEAST_BRANCH)
    trie = PrefixTrie()
    paths = [trie.add((*record.prompt_ids, *record.ids))[len(record.prompt_ids) :] for record in records]
    draws = draws_of_run(ledger, records, trie, tau, StepPrior(rho, sd))
    firsts: dict[int, tuple[int, int]] = {}  # of each node, the completion and position where it comes first
    for number, path in enumerate(paths):
        for position, node in enumerate(path[:-1]):
            firsts.setdefault(node, (number, position))
    open_ = {
        node: _evidence(branches[number][position], draws[node], tau, node)
        for node, (number, position) in firsts.items()
        if branches[number][position].largest_variance >= tau**2
    }
    share = learned_share([found[0].log_odds for found in open_.values()], rho, _RHO_WEIGHT)
    steps = [
        LabelledStep(
            problem_id=records[number].problem_id,
            completion=number,
            position=position,
            label=_label(open_[node], share, tau) if node in open_ else StepLabel.ORDINARY,
            certified=node not in open_,
        )
        for node, (number, position) in firsts.items()
    ]
    return StepTable(tuple(pairs), tuple(steps), trie, {node: index for index, node in enumerate(firsts)})


def _number(ledger: LedgerReader, name: str) -> float:
    value = ledger.settings().get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise LedgerError(f"{ledger.path}: setting {name!r} is {value!r}; expected a number")
    return float(value)


# --- labels -----------------------------------------------------------------------------------------------------------


def _evidence(branches: Branches, draws: StepDraws, tau: float, node: int) -> list[Evidence]:
    """What the draws at a step say that its probabilities don't certify.

    Censored draws are bounds: the first is without them, and where there are some, others follow for what they may
    have been.
    """
    known = set(branches.ids)
    others = [token_id for token_id in draws.by_token if token_id not in known]
    tokens = (*branches.ids, *others)
    # Those were seen, but how likely they are was not kept: less likely than any branch, and all of them than the rest.
    each = min(branches.probabilities[-1], branches.rest / max(len(others), 1))
    probabilities = (*branches.probabilities, *[each] * len(others))
    rest = max(branches.rest - each * len(others), 0.0)
    judged = [draws.by_token.get(token_id, (0, 0, 0)) for token_id in tokens]
    tables = [[(float(s), float(f)) for s, f, _ in judged]]
    if any(censored for _, _, censored in judged):
        tables += [
            [
                (s + c * here, f + c * (1 - here))
                for (s, f, c), here in zip(judged, (likeliest, *[other] * (len(judged) - 1)), strict=True)
            ]
            for likeliest in (0, 1)
            for other in (0, 1)
        ]
    found = []
    for table in tables:
        counts = [
            draws.indirect.get(token_id, direct) for token_id, direct in zip(tokens, table, strict=True)
        ]
        generator = np.random.default_rng(derive_seed(0, node))
        found.append(evidence(probabilities, counts, rest, tau, generator))
    return found


def _label(found: Sequence[Evidence], share: float, tau: float) -> StepLabel:
    """What a step is, if all that censored draws may have been agree.

    Of tokens that were never drawn the others say nothing. So a step is ordinary only if these are together too
    unlikely to make it pivotal, whatever they lead to.
    """
    probabilities = [one.pivotal(share) for one in found]
    if min(probabilities) >= SURELY:
        return StepLabel.PIVOTAL
    undrawn = found[0].undrawn
    is_complete = undrawn < 0.5 and undrawn * (1 - undrawn) < tau**2
    return StepLabel.ORDINARY if is_complete and max(probabilities) <= HARDLY else StepLabel.UNKNOWN
