"""Vector files of a group of alike decisions: what a method made at every block, and when to steer."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from steering_engine.alias import shareable_name
from steering_engine.loading import LoadedModel
from steering_engine.vectors.schema import Probe, SteeringVector, VectorMetadata
from steering_pts.errors import MethodError
from steering_pts.ledger import LedgerReader
from steering_pts.settings import JsonValue
from steering_pts.vectors.centroids import centroids_of
from steering_pts.vectors.events import EventGroup
from steering_pts.vectors.methods import METHODS, Material, Method, is_direction, split_half_cosine
from steering_pts.vectors.probes import probes_of
from steering_pts.vectors.recording import Recording
from steering_pts.vectors.step_states import learn_from


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
class Triggers:
    """What tells a group's steps from others by the residual stream, by block.

    Attributes:
        probes: Linear probes.
        thresholds: Least probability of a probe that fires.
        aucs: Area under a probe's curve on problems that it was not made from.
        centroids: States that the group's steps gather around, `[k, hidden]`.
        min_cosines: Least cosine to a centroid that fires.
    """

    probes: dict[int, Probe] = field(default_factory=dict)
    thresholds: dict[int, float] = field(default_factory=dict)
    aucs: dict[int, float] = field(default_factory=dict)
    centroids: dict[int, torch.Tensor] = field(default_factory=dict)
    min_cosines: dict[int, float] = field(default_factory=dict)


def triggers_of(
    ledger: LedgerReader, loaded: LoadedModel, groups: Sequence[EventGroup], blocks: Sequence[int]
) -> list[Triggers]:
    """For each group the triggers that read the residual stream at these blocks."""
    steps = learn_from(ledger, loaded, blocks)
    states, problem_ids = steps.recorded.states, steps.problem_ids
    found = []
    for group in groups:
        own = [event.prefix_ids for event in group.events]
        targets = steps.recorded.of(steps.table.group_targets(own, steps.decisions))
        probes = probes_of(states, targets, problem_ids)
        centroids = centroids_of(states, targets, problem_ids)
        found.append(
            Triggers(
                probes={block: fitted.probe for block, fitted in probes.items()},
                thresholds={block: fitted.threshold for block, fitted in probes.items()},
                aucs={block: fitted.auc for block, fitted in probes.items()},
                centroids={block: fitted.centroids for block, fitted in centroids.items()},
                min_cosines={block: fitted.min_cosine for block, fitted in centroids.items()},
            )
        )
    return found


@dataclass(frozen=True, slots=True)
class Made:
    """What a method made of a group at one block.

    Attributes:
        direction: Unit vector `[hidden]`.
        norm: Length that the method gave it, in residual units: what a strength of 1 means before calibration.
        residual_norm: Mean norm of the residual stream at decisions.
        reliability: Split-half reliability; None where there are no two halves to compare.
    """

    direction: torch.Tensor
    norm: float
    residual_norm: float
    reliability: float | None


@dataclass(frozen=True, slots=True, eq=False)
class VectorMaker:
    """Makes a group's vectors from its events and their recorded states, a block at a time.

    Attributes:
        loaded: The model.
        group: The decisions.
        recording: Recorded states of all events of the run.
        indices: The group's rows in the recording.
        triggers: What tells the group's steps from others.
    """

    loaded: LoadedModel
    group: EventGroup
    recording: Recording
    indices: tuple[int, ...]
    triggers: Triggers

    def make(self, method: str, blocks: Sequence[int]) -> dict[int, Made]:
        """What a method makes at each block; blocks where it makes no direction are left out.

        Raises:
            MethodError: The decisions don't have what the method needs, or it makes no direction at any block.
        """
        found = {}
        for block in blocks:
            made = made_of(METHODS[method], self._material(block))
            if made is not None:
                found[block] = made
        if not found:
            raise MethodError(f"{method}: the direction came out as zero, up to rounding")
        return found

    def _material(self, block: int) -> Material:
        prefix, chosen, rejected = (
            self.recording.states(place, block, self.indices) for place in ("prefix", "chosen", "rejected")
        )
        norm = self.recording.residual_norm(block)
        return Material(self.loaded, self.group.events, block, prefix, chosen, rejected, norm)


def made_of(method: Method, material: Material) -> Made | None:
    """What a method makes of the states at one block; None where that is no direction.

    Raises:
        MethodError: The decisions don't have what the method needs.
    """
    vector = method(material).double()
    if not is_direction(vector, material.residual_norm):
        return None
    norm = float(vector.norm())
    reliability = split_half_cosine(method, material)
    return Made((vector / norm).float(), norm, material.residual_norm, reliability)


def to_vector(
    maker: VectorMaker, method: str, made: dict[int, Made], name: str, provenance: Provenance
) -> SteeringVector:
    """What a method made of a group as a vector file's content: a direction at each block, as long as it made them."""
    loaded, group, triggers = maker.loaded, maker.group, maker.triggers
    contexts = group.contexts
    metadata = VectorMetadata.model_validate(
        {
            "schema": "steering.vector/1",
            "name": name,
            "description": f"{method} over {len(group.events)} pivots",
            "model_id": shareable_name(loaded.source),
            "model_config_digest": loaded.config_digest,
            "tokenizer_digest": loaded.tokenizer_digest,
            "hidden_size": loaded.hidden_size,
            "block_count": loaded.block_count,
            "method": method,
            "calibrated_strength": {block: one.norm for block, one in made.items()},
            "residual_norm": {block: one.residual_norm for block, one in made.items()},
            "probe_threshold": triggers.thresholds,
            "probe_auc": triggers.aucs,
            "centroid_min_cosine": triggers.min_cosines,
            "context_min_match": group.min_match if contexts else 0,
            "event_count": len(group.events),
            "split_half_cosine": {
                block: one.reliability for block, one in made.items() if one.reliability is not None
            },
            "source_run_digest": provenance.run_digest,
            "discovery_settings": provenance.settings,
            "created": provenance.created,
            "licence": provenance.licence,
        }
    )
    return SteeringVector(
        metadata,
        {block: one.direction.contiguous() for block, one in made.items()},
        contexts,
        triggers.probes,
        triggers.centroids,
    )


def at_block(vector: SteeringVector, block: int, strength: float, name: str) -> SteeringVector:
    """A vector with one of its directions alone, `strength` (residual units) being its calibrated strength."""
    metadata = vector.metadata
    own = {block}
    update = {
        "name": name,
        "description": f"{metadata.method} at block {block} over {metadata.event_count} pivots",
        "calibrated_strength": {block: strength},
        "residual_norm": {key: value for key, value in metadata.residual_norm.items() if key in own},
        "split_half_cosine": {key: value for key, value in metadata.split_half_cosine.items() if key in own},
    }
    return dataclasses.replace(
        vector,
        metadata=VectorMetadata.model_validate({**metadata.model_dump(by_alias=True), **update}),
        directions={block: vector.directions[block]},
        sha256="",
    )
