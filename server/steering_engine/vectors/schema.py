"""The vector file's schema `steering.vector/1`: its metadata, and the vector in memory.

Tensors of a file, `l` being a block:

- `direction.{l}` float32 `[hidden]`, unit norm; at least one.
- `probe.{l}.weight` float32 `[hidden]` and `probe.{l}.bias` float32 `[]`: a linear probe for pivotal steps.
- `centroid.{l}` float32 `[k, hidden]`, 1 <= k <= 1024: residual streams of recorded pivots, of any length but zero.
- `context.ids` int32 `[n]` and `context.offsets` int64 `[m + 1]`: the recorded pivot contexts one after the other.

All but the directions are optional, and probes and centroids may be at blocks without a direction. Metadata are JSON
texts, one for each field of `VectorMetadata`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Annotated, Literal, Self

import torch
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from steering_spec.limits import INT32_MAX, MAX_CONTEXT_MATCH

SCHEMA: Literal["steering.vector/1"] = "steering.vector/1"
MAX_CENTROIDS = 1024
"""Most centroids of a block."""
MAX_METADATA_ENTRIES = 1024
"""Most entries of a field of the metadata, such as strengths by block or settings by name."""
MAX_BLOCK = 999_999
"""Highest block that a tensor can be named after."""

_BLOCK = re.compile(r"(0|[1-9][0-9]*)\Z")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _written_plainly(block: object) -> object:
    if isinstance(block, str) and not _BLOCK.match(block):
        raise ValueError("a block is written as 0, 1, 2 and so on, with digits alone")
    return block


def _setting_that_can_be_told(value: str | float | bool | None) -> str | int | float | bool | None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("Input should be a finite number")
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError("a whole number has at most 64 bits")
    return value


Block = Annotated[int, BeforeValidator(_written_plainly), Field(ge=0, le=MAX_BLOCK)]
Setting = Annotated[str | int | float | bool | None, AfterValidator(_setting_that_can_be_told)]
# Counts are told in 32 bits.
Count = Annotated[int, Field(ge=0, le=INT32_MAX)]
AtLeastOne = Annotated[int, Field(ge=1, le=INT32_MAX)]


class HeldOutLift(BaseModel):
    """What the vector did on problems that it was not made from: a difference of success rates with its interval."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: str
    problems: AtLeastOne
    unsteered: Annotated[float, Field(ge=0, le=1)]
    steered: Annotated[float, Field(ge=0, le=1)]
    lift: Finite
    low95: Finite
    high95: Finite


class RecommendedTrigger(BaseModel):
    """The trigger that a vector was calibrated with; the server takes no notice of it.

    Attributes:
        kind: `always` acts at every step.
        block: Block that a probe or centroids are read at; None for the other kinds.
        min_match: Fewest ids of a context that match, for `context`.
        threshold: Least probability that fires, for `probe`.
        min_cosine: Least cosine that fires, for `similarity`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["always", "context", "probe", "similarity"]
    block: Block | None = None
    min_match: Annotated[int, Field(ge=1, le=MAX_CONTEXT_MATCH)] | None = None
    threshold: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] | None = None
    min_cosine: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        wanted = {
            "always": set(),
            "context": {"min_match"},
            "probe": {"block", "threshold"},
            "similarity": {"block", "min_cosine"},
        }[self.kind]
        fields = ("block", "min_match", "threshold", "min_cosine")
        given = {name for name in fields if getattr(self, name) is not None}
        if given != wanted:
            expected = " and ".join(sorted(wanted)) or "nothing else"
            raise ValueError(f"a trigger of kind {self.kind} has {expected}, not {sorted(given)}")
        return self


class VectorMetadata(BaseModel):
    """Everything that a vector file says about its tensors; every field is checked when a file is read.

    `probe_threshold` and `probe_auc` are for blocks with a probe: the least probability that fires, and the area under
    the curve on events that the probe was not made from. `centroid_min_cosine` is for blocks with centroids: the least
    cosine that fires. A block may be missing from each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_name: Literal["steering.vector/1"] = Field(SCHEMA, alias="schema", serialization_alias="schema")
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
    description: Annotated[str, Field(max_length=1000)]
    model_id: Annotated[str, Field(min_length=1)]
    model_revision: str = ""
    model_config_digest: Sha256
    tokenizer_digest: Sha256
    hidden_size: AtLeastOne
    block_count: AtLeastOne
    hook_point: Literal["resid_post"] = "resid_post"
    method: Annotated[str, Field(min_length=1)]
    calibrated_strength: dict[Block, Positive]
    residual_norm: dict[Block, Positive]
    probe_threshold: dict[Block, Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]] = Field(
        default_factory=dict
    )
    probe_auc: dict[Block, Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]] = Field(
        default_factory=dict
    )
    centroid_min_cosine: dict[Block, Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]] = Field(
        default_factory=dict
    )
    context_min_match: Annotated[int, Field(ge=0, le=MAX_CONTEXT_MATCH)] = 0
    event_count: Count = 0
    split_half_cosine: dict[
        Block, Annotated[float, Field(ge=-1.000001, le=1.000001, allow_inf_nan=False)]
    ] = Field(default_factory=dict)
    source_run_digest: str = ""
    discovery_settings: dict[str, Setting] = Field(default_factory=dict)
    held_out_lift: HeldOutLift | None = None
    recommended_trigger: RecommendedTrigger | None = None
    created: AwareDatetime
    licence: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A linear probe of the residual stream h: a step is pivotal with the probability `sigmoid(weight . h + bias)`.

    Attributes:
        weight: `[hidden]` float32 (CPU).
        bias: A float32 value; a file rounds any other.
    """

    weight: torch.Tensor
    bias: float


@dataclass(frozen=True, slots=True, eq=False)
class SteeringVector:
    """A steering vector in memory.

    Attributes:
        metadata: What the file says about it.
        directions: Unit direction `[hidden]` float32 (CPU) by block.
        contexts: Recorded pivot contexts, oldest id first.
        probes: Probe for pivotal steps by block.
        centroids: Centroids of recorded pivots `[k, hidden]` float32 (CPU) by block, as long as they are.
        sha256: Digest of the file; empty for a vector that was not read from one.
        metadata_bytes: Of the file; 0 for a vector that was not read from one.
    """

    metadata: VectorMetadata
    directions: dict[int, torch.Tensor]
    contexts: tuple[tuple[int, ...], ...] = ()
    probes: dict[int, Probe] = field(default_factory=dict)
    centroids: dict[int, torch.Tensor] = field(default_factory=dict)
    sha256: str = field(default="")
    metadata_bytes: int = 0
