"""Reading codelion/pts data sets: decisions and vectors, and what had to be mended in them.

Known faults of published files: rows that repeat or contradict others, `is_positive` that contradicts `prob_delta`,
optional fields that are missing, and two schema versions side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Final, TypeVar

from steering_pts.data import DataOptions
from steering_pts.data.rows import Row
from steering_pts.data.source import open_rows
from steering_pts.errors import InteropError
from steering_pts.interop.codelion.fields import (
    CodelionFields,
    OwnIds,
    PairFields,
    PivotFields,
    VectorFields,
    validated,
)
from steering_pts.interop.mending import Mending
from steering_pts.interop.told_rates import NOTHING_TOLD, ToldRates

_ROUNDED: Final = 1e-4  # published probabilities are shares of tens of rollouts, some of them rounded

Fields = TypeVar("Fields", bound=CodelionFields)
Made = TypeVar("Made", "Decision", "ForeignVector")


@dataclass(frozen=True, slots=True)
class TokenText:
    """A token as a file names it: its text, and its id where that is given."""

    text: str
    id: int | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """A pivotal token of another program: text, and an effect that nobody here has verified.

    Attributes:
        number: Its row.
        model_id: The model it is of; empty where the file does not say.
        query: The question; empty where the file does not say.
        context: Prompt and completion before the token, special tokens included.
        taken: The token.
        other: The token in its place; None where the file has none.
        delta: Effect of the token that was taken on P(success), in [-1, 1], not 0.
        task_type: What kind of problem.
        own: Ids, where the file is an export of ours.
        rates: P(success) around the token, as far as the file tells them.
    """

    number: int
    model_id: str
    query: str
    context: str
    taken: TokenText
    other: TokenText | None
    delta: float
    task_type: str
    own: OwnIds
    rates: ToldRates = NOTHING_TOLD


@dataclass(frozen=True, slots=True)
class ForeignVector:
    """A row of a data set of steering vectors.

    Attributes:
        number: Its row.
        model_id: The model it is of; empty where the file does not say.
        context: Text before the pivot.
        values: The vector, in residual units.
        weight: Effect of the pivot on P(success); its sign says whether the vector is to be added or subtracted.
        group: Rows with the same value belong together.
        layer: Block whose output it is added to; None where the file does not say.
    """

    number: int
    model_id: str
    context: str
    values: tuple[float, ...]
    weight: float | None
    group: str
    layer: int | None


def read_pivots(source: str, options: DataOptions, mending: Mending) -> list[Decision]:
    """The decisions of a `pts` data set; see `_read`."""
    return _read(source, options, PivotFields, lambda number, row: _pivot(number, row, mending), mending)


def read_pairs(source: str, options: DataOptions, mending: Mending) -> list[Decision]:
    """The decisions of a `pts-dpo-pairs` data set; see `_read`."""
    return _read(source, options, PairFields, lambda number, row: _pair(number, row, mending), mending)


def read_vectors(source: str, options: DataOptions, mending: Mending) -> list[ForeignVector]:
    """The rows of a `pts-steering-vectors` data set; see `_read`."""
    return _read(source, options, VectorFields, lambda number, row: _vector(number, row, mending), mending)


def _read(
    source: str,
    options: DataOptions,
    kind: type[Fields],
    make: Callable[[int, Fields], Made | str],
    mending: Mending,
) -> list[Made]:
    """What the rows of a source hold, without those that repeat an earlier one or say its contrary.

    Args:
        source: A file, a folder, or a data set of the Hub.
        options: How to read it, what of it, and whether bad rows are skipped.
        kind: The fields of a row.
        make: What a sound row holds, or what is wrong with it.
        mending: Hears of everything that was mended.

    Raises:
        InteropError: It has rows that can't be used, with all of them; or none at all.
        DataError: It can't be read.
    """
    made: list[Made] = []
    faults: list[str] = []
    seen: set[Hashable] = set()
    claimed: dict[Hashable, int] = {}
    rows = open_rows(source, options.format, options.split, options.limit)
    with closing(rows.rows):
        for row in rows.rows:
            if options.limit is not None and len(made) >= options.limit:
                break
            item = _made(row, kind, make)
            if isinstance(item, str):
                faults.append(f"{rows.noun} {row.number}: {item}")
                continue
            claim, contrary = _claims(item)
            if contrary in claimed:
                mending.note(
                    f"left out, because it contradicts row {claimed[contrary]}, which stands", row.number
                )
            elif (key := _identity(item)) in seen:
                mending.note("left out, because it repeats an earlier one", row.number)
            else:
                seen.add(key)
                claimed.setdefault(claim, row.number)
                made.append(item)
    if not made and not faults:
        raise InteropError(source, [f"it is empty; {rows.wanted}"])
    if faults and not (options.skip_bad_rows and made):
        raise InteropError(source, faults)
    mending.note_all("left out, because it can't be used", (int(f.split()[1].rstrip(":")) for f in faults))
    return made


def _made(row: Row, kind: type[Fields], make: Callable[[int, Fields], Made | str]) -> Made | str:
    if row.fault is not None:
        return row.fault
    fields = validated(kind, row.values)
    return fields if isinstance(fields, str) else make(row.number, fields)


def _identity(item: Decision | ForeignVector) -> Hashable:
    if isinstance(item, Decision):
        other = None if item.other is None else item.other.text
        return item.model_id, item.context, item.taken.text, other
    return item.model_id, item.context, item.values, item.layer


def _claims(item: Decision | ForeignVector) -> tuple[Hashable, Hashable]:
    """What a row says is better or worse, and what a row that contradicts it would say."""
    if isinstance(item, Decision):
        at, taken = (item.model_id, item.context), item.taken.text
        other = None if item.other is None else item.other.text
        better, worse = (taken, other) if item.delta > 0 else (other, taken)
        return (*at, better, worse), (*at, worse, better)
    harmful = item.weight is not None and item.weight < 0
    return (_identity(item), harmful), (_identity(item), not harmful)


def _pivot(number: int, row: PivotFields, mending: Mending) -> Decision | str:
    delta = row.prob_delta
    change = None if row.prob_before is None or row.prob_after is None else row.prob_after - row.prob_before
    if delta is None:
        if change is None:
            return "it has no prob_delta, and not both prob_before and prob_after"
        mending.note("prob_delta was missing; it is prob_after - prob_before", number)
        delta = change
    elif change is not None and abs(change - delta) > _ROUNDED:
        mending.note("prob_delta is not prob_after - prob_before; prob_delta stands", number)
    if delta == 0:
        return "prob_delta is 0; a pivotal token changes the probability of success"
    if row.is_positive is None:
        mending.note("is_positive was missing; it is the sign of prob_delta", number)
    elif row.is_positive != (delta > 0):
        mending.note("is_positive contradicted prob_delta; it is its sign", number)
    other = None if row.rejected_token is None else TokenText(row.rejected_token, row.rejected_token_id)
    if other is not None and other.text == row.pivot_token:
        # So some files say that the token was the worse one, which its effect says already.
        mending.note(
            "rejected_token was the pivot_token itself; what stood in its place is not known", number
        )
        other = None
    missing = [name for name in ("model_id", "query", "task_type") if not getattr(row, name)]
    mending.note_all(f"{' and '.join(missing)} missing", [number] if missing else [])
    return Decision(
        number,
        row.model_id,
        row.query,
        row.pivot_context,
        TokenText(row.pivot_token, row.pivot_token_id),
        other,
        delta,
        row.task_type or "generic",
        row.metadata,
        ToldRates(row.prob_before, row.prob_after),
    )


def _pair(number: int, row: PairFields, mending: Mending) -> Decision | str:
    if row.chosen == row.rejected:
        return f"chosen and rejected are the same ({row.chosen!r:.40})"
    about = row.metadata
    delta = about.prob_delta
    if delta is None:
        if about.prob_chosen is None or about.prob_rejected is None:
            return "its metadata have no prob_delta, and not both prob_chosen and prob_rejected"
        mending.note("prob_delta was missing; it is prob_chosen - prob_rejected", number)
        delta = about.prob_chosen - about.prob_rejected
        if delta < 0:
            return "prob_chosen is below prob_rejected; the better answer must be the chosen one"
    if delta == 0:
        return "its effect is 0; one answer must be better"
    missing = [name for name in ("original_query", "task_type") if not getattr(about, name)]
    mending.note_all(f"{' and '.join(missing)} missing", [number] if missing else [])
    chosen, rejected = TokenText(row.chosen), TokenText(row.rejected)
    # A negative effect is that of the token which was taken, and that is then the worse one.
    rates = ToldRates(after=about.prob_chosen, other=about.prob_rejected)
    taken, other = chosen, rejected
    if delta < 0:
        taken, other, rates = other, taken, ToldRates(after=rates.other, other=rates.after)
    task = about.task_type or "generic"
    return Decision(number, "", about.original_query, row.prompt, taken, other, delta, task, about, rates)


def _vector(number: int, row: VectorFields, mending: Mending) -> ForeignVector | str:
    if not any(row.steering_vector):
        return "steering_vector is zero everywhere"
    if row.prob_delta is None or row.prob_delta == 0:
        mending.note("prob_delta was missing; it counts as one of average size, and positive", number)
    elif row.prob_delta < 0:
        mending.note("subtracted, because its token is a harmful one", number)
    group = row.reasoning_pattern if row.cluster_id is None else f"{row.reasoning_pattern}-{row.cluster_id}"
    return ForeignVector(
        number,
        row.model_id,
        row.pivot_context,
        row.steering_vector,
        row.prob_delta or None,
        group,
        row.steering_layer,
    )


def the_model(source: str, named: str | None, items: Iterable[Decision | ForeignVector]) -> str:
    """The one model that a file's rows are of: the named one, or the only one that they name.

    Raises:
        InteropError: They name several, or none and none is given.
    """
    found = sorted({item.model_id for item in items if item.model_id})
    if len(found) > 1:
        raise InteropError(
            source, [f"its rows are of {len(found)} models ({', '.join(found):.200}); keep those of one"]
        )
    if named is None and not found:
        raise InteropError(source, ["it names no model; name one with --model"])
    return named or found[0]
