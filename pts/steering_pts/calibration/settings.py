"""The settings that compete: method x block x strength x trigger of a group's candidate vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steering_engine.vectors.schema import RecommendedTrigger, SteeringVector
from steering_pts.calibration.candidates import CandidateGroup
from steering_pts.calibration.options import CalibrationOptions, TriggerKindName
from steering_spec import ContextTrigger, ProbeTrigger, SimilarityTrigger, SteeringRule, Trigger


@dataclass(frozen=True, slots=True)
class TriggerChoice:
    """When a setting acts: the kind, and for a probe or centroids the block that is read."""

    kind: TriggerKindName
    block: int | None = None

    def __str__(self) -> str:
        return self.kind if self.block is None else f"{self.kind}@{self.block}"

    @property
    def trigger(self) -> Trigger | None:
        """The trigger of a rule, with the file's own thresholds."""
        if self.kind == "context":
            return ContextTrigger()
        if self.kind == "probe":
            return ProbeTrigger(layer=self.block)
        return SimilarityTrigger(layer=self.block) if self.kind == "similarity" else None

    def recommended(self, vector: SteeringVector) -> RecommendedTrigger:
        """What a vector file says about it, with the thresholds that it was calibrated with."""
        metadata = vector.metadata
        block = -1 if self.block is None else self.block
        return RecommendedTrigger(
            kind=self.kind,
            block=self.block,
            min_match=metadata.context_min_match if self.kind == "context" else None,
            threshold=metadata.probe_threshold.get(block) if self.kind == "probe" else None,
            min_cosine=metadata.centroid_min_cosine.get(block) if self.kind == "similarity" else None,
        )


@dataclass(frozen=True, slots=True)
class Setting:
    """One way of steering with a group's vectors.

    Attributes:
        method: The method whose direction acts.
        vector_id: Name under which its file is loaded.
        block: Block that is steered.
        multiple: Strength as a multiple of the method's own length; what the rule has.
        strength: The same in residual units.
        relative: The same in units of the mean residual norm there, by which strengths of different blocks compare.
        trigger: When it acts.
    """

    method: str
    vector_id: str
    block: int
    multiple: float
    strength: float
    relative: float
    trigger: TriggerChoice

    @property
    def rule(self) -> SteeringRule:
        """The setting as a rule of a request."""
        return SteeringRule(self.vector_id, self.multiple, layers=(self.block,), trigger=self.trigger.trigger)

    def __str__(self) -> str:
        return f"{self.method}, block {self.block}, x{self.multiple:g}, {self.trigger}"


def settings_of(group: CandidateGroup, options: CalibrationOptions) -> list[Setting]:
    """Every setting of a group that its files have the data for, in a fixed order."""
    return [
        Setting(
            method,
            group.ids[method],
            block,
            multiple,
            multiple * vector.metadata.calibrated_strength[block],
            multiple * vector.metadata.calibrated_strength[block] / vector.metadata.residual_norm[block],
            trigger,
        )
        for method, vector in group.vectors.items()
        for block in sorted(vector.directions)
        for trigger in triggers_of(vector, block, options)
        for multiple in sorted(options.multiples)
    ]


def triggers_of(vector: SteeringVector, block: int, options: CalibrationOptions) -> list[TriggerChoice]:
    """The triggers that a vector has the data for when it is steered at a block.

    Probes and centroids without a threshold of their own are left out: there is nothing to fire at.
    """
    metadata = vector.metadata
    found = []
    if "context" in options.triggers and vector.contexts:
        found.append(TriggerChoice("context"))
    if "probe" in options.triggers:
        probes = [b for b in sorted(vector.probes) if b <= block and b in metadata.probe_threshold]
        # The order by which a server picks one.
        best = max(probes, key=lambda b: (metadata.probe_auc.get(b, 0.0), b), default=None)
        found += _read_at("probe", probes, best, options)
    if "similarity" in options.triggers:
        centroids = [b for b in sorted(vector.centroids) if b <= block and b in metadata.centroid_min_cosine]
        found += _read_at("similarity", centroids, max(centroids, default=None), options)
    if "always" in options.triggers:
        found.append(TriggerChoice("always"))
    return found


def _read_at(
    kind: TriggerKindName, blocks: Sequence[int], best: int | None, options: CalibrationOptions
) -> list[TriggerChoice]:
    if options.trigger_blocks == "all":
        return [TriggerChoice(kind, block) for block in blocks]
    return [] if best is None else [TriggerChoice(kind, best)]
