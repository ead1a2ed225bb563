"""The page itself: what is to be shown, put into the templates.

It has no script, and its policy allows none: what a model wrote can be shown, but never run, nor fetch anything.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import BaseModel

from steering_engine.errors import EngineError
from steering_pts.errors import LedgerError, ReportError
from steering_pts.ledger import LedgerReader
from steering_pts.report.charts import effects_chart
from steering_pts.report.completions import shown_completions
from steering_pts.report.curves import RunCurves
from steering_pts.report.heat import heat_maps, trigger_name
from steering_pts.report.measured import shown_evaluation
from steering_pts.report.overview import frequent_tokens, tiles
from steering_pts.report.palette import style_rules
from steering_pts.report.provenance import digests, settings_by_part, versions
from steering_pts.report.results import Calibration, Evaluation, read_result
from steering_pts.report.texts import clean, shorten
from steering_pts.report.vectors import vector_rows
from steering_pts.statistics import Estimate

Decode = Callable[[Sequence[int]], str]
Result = TypeVar("Result", bound=BaseModel)
_MOST_GROUPS: Final = 20
_SHOWN_MAPS: Final = 4  # heat maps of a group that are unfolded


@dataclass(frozen=True, slots=True)
class PageOptions:
    """What the page says and how much.

    Attributes:
        state: Whether the run is finished, in words.
        finished: Whether it is.
        completions: Completions shown at most.
        written: When the page is written.
    """

    state: str
    finished: bool
    completions: int
    written: dt.datetime


def report_page(
    folder: Path, ledger: LedgerReader, decoders: Callable[[], tuple[Decode, Decode]], options: PageOptions
) -> str:
    """The page about a run as HTML; a file of results or a vector that can't be read is told in its place.

    Args:
        folder: The run's folder.
        ledger: Its ledger.
        decoders: Gives what turns ids into text, with special tokens and without; it may raise EngineError or
            LedgerError where the run's tokenizer is gone, and the page then says so and shows no text.
        options: What the page says and how much.

    Raises:
        LedgerError: The ledger can't be read.
    """
    calibration, calibration_fault = _result(folder / "calibration.json", Calibration)
    evaluation, evaluation_fault = _result(folder / "evaluation.json", Evaluation)
    pivots = ledger.pivots()
    summary = ledger.summary()
    settings = ledger.settings()
    groups = calibration.groups[:_MOST_GROUPS] if calibration else []
    rows, faults, more_vectors = vector_rows(folder / "vectors")
    context: dict[str, Any] = {
        "name": folder.resolve().name,
        "state": options.state,
        "finished": options.finished,
        "model": settings.get("model", ""),
        "written": options.written,
        "summary": summary,
        "tiles": tiles(summary),
        "effects": effects_chart(pivots) if pivots else None,
        "unit": settings.get("search.unit", "token"),
        "calibration": calibration,
        "calibration_fault": calibration_fault,
        "shown_maps": _SHOWN_MAPS,
        "heats": [(group, heat_maps(group)) for group in groups],
        "more_groups": len(calibration.groups) - len(groups) if calibration else 0,
        "evaluation": shown_evaluation(evaluation) if evaluation else None,
        "evaluation_fault": evaluation_fault,
        "vectors": rows,
        "vector_faults": faults,
        "more_vectors": more_vectors,
        "candidates": len(list((folder / "candidates").glob("*.safetensors"))),
        "settings": settings_by_part(settings),
        "digests": digests(folder),
        "versions": versions(),
        **_texts(ledger, decoders, options),
    }
    return _environment().get_template("page.html.j2").render(context)


def _result(path: Path, kind: type[Result]) -> tuple[Result | None, str | None]:
    """A file of results, or what is wrong with it."""
    try:
        return read_result(path, kind), None
    except ReportError as error:
        # The page may be for others, who don't know the folders of this machine.
        return None, str(error).replace(str(path), path.name, 1)


def _texts(
    ledger: LedgerReader, decoders: Callable[[], tuple[Decode, Decode]], options: PageOptions
) -> dict[str, Any]:
    """What needs the tokenizer."""
    pivots = ledger.pivots()
    if not ledger.scores():  # nothing was searched, so no tokenizer is needed
        return {"completions": [], "tokens": [], "more_tokens": 0, "no_text": None, "searched": 0}
    try:
        decode, plain = decoders()
    except (EngineError, LedgerError) as error:
        return {"completions": [], "tokens": [], "more_tokens": 0, "no_text": str(error), "searched": 0}
    curves = RunCurves(ledger, plain)
    tokens, more = frequent_tokens(pivots, decode)
    return {
        "completions": list(shown_completions(ledger, curves, pivots, decode, options.completions)),
        "searched": len(curves.searched),
        "tokens": tokens,
        "more_tokens": more,
        "no_text": None,
    }


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("steering_pts.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalized,
    )
    style = _source("style.css", environment) + style_rules()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment.globals |= {
        "style": Markup(style),  # noqa: S704 -- our own
        # Only this style sheet and the empty icon; no script, no font, no connection.
        "policy": f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; form-action 'none'",
    }
    environment.filters |= {
        "signed": lambda value: _signed(value, 2),
        "signed3": lambda value: _signed(value, 3),
        "rate": lambda value: f"{value:.2f}",
        "rate3": lambda value: f"{value:.3f}",
        "figure": lambda value: f"{value:.3g}",
        "count": lambda value: f"{value:,}",
        "shorten": shorten,
        "words": lambda name: name.replace("_", " "),
        "bar": _bar,
        "trigger": trigger_name,
    }
    return environment


def _source(name: str, environment: Environment) -> str:
    assert environment.loader is not None  # noqa: S101 -- given above
    return environment.loader.get_source(environment, name)[0]


def _finalized(value: object) -> object:
    """Texts without what HTML may not hold, just before they are escaped."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _signed(value: float, digits: int) -> str:
    """A number with its sign, a minus that is as wide as a plus, and none on what rounds to zero."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "\u2212")


def _bar(rate: Estimate, kind: str) -> Markup:
    """A rate in [0, 1] as a bar with its interval; attributes, not styles, so that the policy holds."""
    value, low, high = (round(100 * min(max(number, 0.0), 1.0), 1) for number in rate)
    return Markup(
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="fill-grid" width="100" height="10"/>'
        '<rect class="fill-{0}" width="{1}" height="10"/>'
        '<rect class="fill-page" x="{2}" y="3" width="{3}" height="4"/>'
        '<rect class="fill-ink" x="{2}" y="4" width="{3}" height="2"/></svg>'
    ).format(kind, value, low, round(max(high - low, 0.6), 1))
