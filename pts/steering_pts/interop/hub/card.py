"""The cards of exports: which model, which data, which settings, how many, how sure, and what it is not good for."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from huggingface_hub import DatasetCardData, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from steering_engine.vectors.schema import SteeringVector
from steering_pts.interop.hub.naming import is_on_hub, shown_model
from steering_pts.ledger import LedgerReader, PivotRecord

_SHOWN: Final = 10
_LONGEST_CELL: Final = 80
_TAGS: Final = ["pivotal-tokens"]


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a card says of a run."""

    model: str
    oracle: str
    problems: int
    completions: int
    rollouts: int
    pivots: int
    fdr: object
    delta0: object
    imported: str
    settings: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, ledger: LedgerReader) -> RunFacts:
        """Those of a run."""
        settings, summary = ledger.settings(), ledger.summary()
        return cls(
            model=shown_model(str(settings.get("model", "an unknown model"))),
            oracle=str(settings.get("oracle", "unknown")),
            problems=summary.problems,
            completions=sum(summary.completions.values()),
            rollouts=sum(summary.rollouts.values()),
            pivots=summary.pivots,
            fdr=settings.get("search.fdr"),
            delta0=settings.get("search.delta0"),
            imported=_origin(settings.get("imported")),
            settings=tuple(
                (name, str(value))
                for name, value in sorted(settings.items())
                if name not in {"model", "imported"}
            ),
        )


def dataset_card(
    ledger: LedgerReader,
    decode: Callable[[Sequence[int]], str],
    *,
    what: str,
    data_file: str,
    rows: int,
    licence: str,
) -> str:
    """The card of a data set made of a run.

    Args:
        ledger: The run.
        decode: Turns its ids into text.
        what: One sentence that says what a row is.
        data_file: Path of the data inside the folder.
        rows: How many there are.
        licence: SPDX identifier.
    """
    questions = {problem.id: problem.question for problem in ledger.problems()}
    largest = sorted(ledger.pivots(), key=lambda pivot: -abs(pivot.delta))[:_SHOWN]
    data = DatasetCardData(license=licence.lower(), tags=_TAGS, pretty_name="Pivotal tokens")
    body = _render(
        "dataset.md.jinja",
        run=RunFacts.of(ledger),
        what=what,
        data_file=data_file,
        rows=rows,
        pivots=[_pivot(pivot, questions.get(pivot.problem_id, ""), decode) for pivot in largest],
    )
    return f"---\n{data.to_yaml()}\n---\n{body}"


def model_card(
    ledger: LedgerReader,
    vectors: Sequence[tuple[Path, SteeringVector]],
    *,
    what: str,
    licence: str,
    has_triggers: bool,
) -> str:
    """The card of vector files, with what each was measured to do.

    Args:
        ledger: The run that they were made of.
        vectors: The files and what they hold.
        what: One sentence that says what the files are.
        licence: SPDX identifier.
        has_triggers: Whether the files say when to act.
    """
    facts = RunFacts.of(ledger)
    base = facts.model if is_on_hub(facts.model) else None
    data = ModelCardData(license=licence.lower(), tags=[*_TAGS, "steering-vectors"], base_model=base)
    body = _render(
        "model.md.jinja",
        run=facts,
        what=what,
        vectors=[_vector(path, vector) for path, vector in vectors],
        has_triggers=has_triggers,
    )
    return f"---\n{data.to_yaml()}\n---\n{body}"


def _origin(imported: object) -> str:
    """What an imported run was made of; empty for one that was discovered."""
    if not isinstance(imported, str):
        return ""
    origin = json.loads(imported)
    return f"{origin['source']} ({origin['layout']})"


def _pivot(pivot: PivotRecord, question: str, decode: Callable[[Sequence[int]], str]) -> dict[str, Any]:
    other = pivot.rejected_ids if pivot.delta > 0 else pivot.chosen_ids
    return {
        "question": question,
        "token": decode(pivot.ids),
        "other": decode(other),
        "delta": pivot.delta,
        "low": pivot.low,
        "high": pivot.high,
        "q_value": pivot.q_value,
    }


def _vector(path: Path, vector: SteeringVector) -> dict[str, Any]:
    about = vector.metadata
    lift = about.held_out_lift
    return {
        "file": path.name,
        "method": about.method,
        "blocks": ", ".join(map(str, vector.directions)),
        "strength": ", ".join(f"{about.calibrated_strength[block]:.3g}" for block in vector.directions),
        "events": about.event_count,
        "lift": "not measured"
        if lift is None
        else f"{lift.lift:+.3f} ({lift.low95:+.3f} to {lift.high95:+.3f})",
        "on": "-" if lift is None else f"{lift.problems} problems ({lift.split})",
    }


def _render(template: str, **values: object) -> str:
    environment = Environment(
        loader=PackageLoader("steering_pts.interop.hub"),
        undefined=StrictUndefined,
        autoescape=select_autoescape(["html"]),  # these are Markdown: `cell` does it
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    return environment.get_template(template).render(**values)


def _cell(value: object) -> str:
    """A text as a cell of a Markdown table: on one line, without what would be read as markup."""
    text = " ".join(f"{value}".split("\n"))
    text = text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 1]}…"
    for character in "\\`|<>*_[]#~$":
        text = text.replace(character, f"\\{character}")
    return text if text.strip() else f"`{text}`"
