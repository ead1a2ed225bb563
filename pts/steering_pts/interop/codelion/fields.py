"""The fields of codelion/pts data sets as they are read: lenient about what is missing, strict about what is there.

Data sets: `pts` (pivotal tokens), `pts-dpo-pairs` (preferences) and `pts-steering-vectors`. Fields that only other
programs need are not looked at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Effect = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
# With a bound on its length a text is looked at, and half of a surrogate pair, which no tokenizer takes, is told.
AnyText = Annotated[str, Field(min_length=0)]
SomeText = Annotated[str, Field(min_length=1)]
_SHOWN_FAULTS: Final = 4  # of one row: a vector may have thousands of bad numbers
Fields = TypeVar("Fields", bound="CodelionFields")


def _version(value: object) -> object:
    # YAML and CSV turn "1.0" into a number.
    return f"{value:.1f}" if isinstance(value, float | int) and not isinstance(value, bool) else value


def _parsed(value: object) -> object:
    """What a column of JSON text holds: CSV and some Parquet files keep lists and objects so."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        # The one other form that readers of these files know: numbers and commas.
        return [part.strip() for part in value.strip("[] ").split(",")]


class CodelionFields(BaseModel):
    """Base: unknown fields are ignored, what is null is missing."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: Annotated[Literal["1.0", "2.0"] | None, BeforeValidator(_version)] = None


class OwnIds(BaseModel):
    """What an export of ours says under `metadata`; in files of other programs all of it is missing."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    prompt_ids: tuple[TokenId, ...] | None = None
    prefix_ids: tuple[TokenId, ...] | None = None
    chosen_ids: tuple[TokenId, ...] | None = None
    rejected_ids: tuple[TokenId, ...] | None = None


def _own_ids(value: object) -> object:
    # The data set `pts` has no such field: what other programs keep under the name is theirs, whatever it is.
    try:
        return OwnIds.model_validate(_parsed(value))
    except ValidationError:
        return OwnIds()


class PivotFields(CodelionFields):
    """A row of `pts`."""

    model_id: AnyText = ""
    query: AnyText = ""
    pivot_context: SomeText
    pivot_token: SomeText
    pivot_token_id: int | None = None
    prob_before: Probability | None = None
    prob_after: Probability | None = None
    prob_delta: Effect | None = None
    is_positive: bool | None = None
    task_type: AnyText | None = None
    rejected_token: AnyText | None = None
    rejected_token_id: int | None = None
    metadata: Annotated[OwnIds, BeforeValidator(_own_ids)] = OwnIds()


class PairMetadata(OwnIds):
    """The metadata of a row of `pts-dpo-pairs`; version 2 has both probabilities."""

    original_query: AnyText = ""
    prob_delta: Effect | None = None
    task_type: AnyText | None = None
    prob_chosen: Probability | None = None
    prob_rejected: Probability | None = None


class PairFields(CodelionFields):
    """A row of `pts-dpo-pairs`."""

    prompt: SomeText
    chosen: SomeText
    rejected: SomeText
    metadata: Annotated[PairMetadata, BeforeValidator(_parsed)] = PairMetadata()


class VectorFields(CodelionFields):
    """A row of `pts-steering-vectors`."""

    model_id: AnyText = ""
    pivot_context: SomeText
    steering_vector: Annotated[
        tuple[Annotated[float, Field(allow_inf_nan=False)], ...],
        Field(min_length=1),
        BeforeValidator(_parsed),
    ]
    reasoning_pattern: SomeText = "unknown"
    prob_delta: Effect | None = None
    cluster_id: int | None = None
    steering_layer: Annotated[int, Field(ge=0)] | None = None


def validated(kind: type[Fields], values: Mapping[str, object]) -> Fields | str:
    """The fields of a row, or everything that is wrong with them in one sentence."""
    # CSV has no null: an empty cell is what it has of one.
    present = {
        name: _without_nulls(value) for name, value in values.items() if value is not None and value != ""
    }
    try:
        return kind.model_validate(present)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc'][:2]))}: {_message(fault)}" for fault in error.errors()]
        more = len(faults) - _SHOWN_FAULTS
        return "; ".join(faults[:_SHOWN_FAULTS]) + (f"; and {more} more" if more > 0 else "")


def _without_nulls(value: object) -> object:
    # Data sets with one schema for all rows fill what a row does not have with nulls.
    if isinstance(value, Mapping):
        return {name: item for name, item in value.items() if item is not None}
    return value


def _message(fault: Any) -> str:
    if fault["type"] == "missing":
        return "is missing"
    return f"{fault['msg'][:1].lower()}{fault['msg'][1:]} (it is {fault['input']!r:.40})"
