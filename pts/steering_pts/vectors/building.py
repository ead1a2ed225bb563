"""Candidate vectors of a group of events: every method at every block, as files that the engine can load."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from steering_engine.loading import LoadedModel
from steering_engine.vectors.schema import HeldOutLift, SteeringVector, VectorMetadata
from steering_pts.settings import JsonValue
from steering_pts.vectors.events import EventGroup
from steering_pts.vectors.methods import optimised, paired_difference, split_half_cosine
from steering_pts.vectors.recording import Recording

METHODS = ("paired_difference", "optimised")


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where vectors come from, as their files tell.

    Attributes:
        run_digest: SHA-256 of the run's pivots.
        settings: The run's settings.
        licence: SPDX identifier of the vectors' licence.
        created: When they were made.
    """

    run_digest: str
    settings: dict[str, JsonValue]
    licence: str
    created: dt.datetime


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A direction at one block made by one method, not yet scaled.

    Attributes:
        method: Its name.
        block: The block.
        direction: Unit vector `[hidden]`.
        norm: Length that the method gave it, in residual units: what a strength of 1 means before calibration.
    """

    method: str
    block: int
    direction: torch.Tensor
    norm: float


@dataclass(frozen=True, slots=True, eq=False)
class VectorMaker:
    """Makes directions from a group's events and their recorded states.

    Attributes:
        loaded: The model.
        group: The decisions.
        recording: Recorded states of all events of the run.
        indices: The group's rows in the recording.
    """

    loaded: LoadedModel
    group: EventGroup
    recording: Recording
    indices: tuple[int, ...]

    def candidates(self, methods: Sequence[str], blocks: Sequence[int]) -> list[Candidate]:
        """Every method at every block; directions that came out as zero are left out."""
        everything = list(range(len(self.group.events)))
        made = []
        for method in methods:
            for block in blocks:
                vector = self.make(method, block, everything)
                norm = float(vector.norm())
                if norm > 0:
                    made.append(Candidate(method, block, vector / norm, norm))
        return made

    def make(self, method: str, block: int, rows: list[int]) -> torch.Tensor:
        """The direction `[hidden]` that a method makes at a block from some of the group's events."""
        events = [self.group.events[row] for row in rows]
        if method == "optimised":
            return optimised(self.loaded, events, block, self.recording.residual_norm(block))
        at = [self.indices[row] for row in rows]
        weights = torch.tensor([event.weight for event in events])
        states = self.recording.states
        return paired_difference(states["chosen"][block][at], states["rejected"][block][at], weights)

    def reliability(self, candidate: Candidate) -> float | None:
        """Split-half reliability of a candidate's method at its block; None with one event, which has no halves."""
        return split_half_cosine(
            lambda rows: self.make(candidate.method, candidate.block, rows), len(self.group.events)
        )


def to_vector(
    maker: VectorMaker,
    candidate: Candidate,
    name: str,
    strength: float,
    provenance: Provenance,
    reliability: float | None = None,
    lift: HeldOutLift | None = None,
) -> SteeringVector:
    """A candidate as a vector file's content, with `strength` (residual units) as its calibrated strength."""
    loaded, group = maker.loaded, maker.group
    metadata = VectorMetadata.model_validate(
        {
            "schema": "steering.vector/1",
            "name": name,
            "description": f"{candidate.method} at block {candidate.block} over {len(group.events)} pivots",
            "model_id": loaded.source,
            "model_config_digest": loaded.config_digest,
            "tokenizer_digest": loaded.tokenizer_digest,
            "hidden_size": loaded.hidden_size,
            "block_count": loaded.block_count,
            "method": candidate.method,
            "calibrated_strength": {candidate.block: strength},
            "residual_norm": {candidate.block: maker.recording.residual_norm(candidate.block)},
            "context_min_match": group.min_match,
            "event_count": len(group.events),
            "split_half_cosine": {} if reliability is None else {candidate.block: reliability},
            "source_run_digest": provenance.run_digest,
            "discovery_settings": provenance.settings,
            "held_out_lift": lift,
            "created": provenance.created,
            "licence": provenance.licence,
        }
    )
    contexts = sorted({event.context for event in group.events})
    return SteeringVector(metadata, {candidate.block: candidate.direction.contiguous()}, tuple(contexts))
