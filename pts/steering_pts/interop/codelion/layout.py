"""The rows of codelion/pts data sets as they are written: its fields exactly, and ours under `metadata`."""

from __future__ import annotations

from dataclasses import dataclass

from steering_pts.ledger.records import AlternativeCount


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a run knows of a pivot beyond the other program's fields.

    Attributes:
        problem_id: Problem of the run.
        completion_id: Completion of the run.
        position: Index of the generated token.
        prompt_ids: Exact ids of the prompt.
        prefix_ids: Exact ids of the completion before the pivot.
        chosen_ids: The better one of the pair.
        rejected_ids: The worse one.
        delta: Effect of the token that was taken.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p_value: Of the confirmation.
        q_value: After Benjamini-Hochberg over the run.
        on_path_rollouts: Judged rollouts of the confirmation on the token's side; 0 of a pivot that was imported.
        alternative_rollouts: Those on the other side.
        alternatives: What rollouts put in its place, with successes and failures.
    """

    problem_id: str
    completion_id: str
    position: int
    prompt_ids: tuple[int, ...]
    prefix_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    delta: float
    low: float
    high: float
    p_value: float
    q_value: float
    on_path_rollouts: int
    alternative_rollouts: int
    alternatives: tuple[AlternativeCount, ...]


@dataclass(frozen=True, slots=True)
class PivotRow:
    """A row of `pts`, version 1.

    `rejected_token` is the token in the place of a helpful one. A harmful one has none: readers that train on
    (`pivot_token`, `rejected_token`) would learn the wrong of the two; the pair stands in `metadata`.
    """

    model_id: str
    query: str
    pivot_context: str
    pivot_token: str
    pivot_token_id: int
    prob_before: float | None
    prob_after: float | None
    prob_delta: float
    is_positive: bool
    task_type: str
    dataset_item_id: str
    timestamp: str
    rejected_token: str | None
    rejected_token_id: int | None
    metadata: Evidence


@dataclass(frozen=True, slots=True)
class PivotRow2(PivotRow):
    """A row of `pts`, version 2."""

    schema_version: str = "2.0"


@dataclass(frozen=True, slots=True)
class PairMetadata(Evidence):
    """Metadata of a row of `pts-dpo-pairs`, version 1: its three fields, and ours."""

    original_query: str
    prob_delta: float
    task_type: str


@dataclass(frozen=True, slots=True)
class PairMetadata2(PairMetadata):
    """The same in version 2."""

    prob_chosen: float | None
    prob_rejected: float | None
    event_id: str
    category: str
    counterpart_verified: bool


@dataclass(frozen=True, slots=True)
class PairRow:
    """A row of `pts-dpo-pairs`, version 1."""

    prompt: str
    chosen: str
    rejected: str
    metadata: PairMetadata


@dataclass(frozen=True, slots=True)
class PairRow2:
    """A row of `pts-dpo-pairs`, version 2."""

    prompt: str
    chosen: str
    rejected: str
    metadata: PairMetadata2
    schema_version: str = "2.0"


@dataclass(frozen=True, slots=True)
class VectorEvidence:
    """What a vector file knows beyond the other program's fields.

    Attributes:
        vector: Its name.
        method: How it was made.
        calibrated_strength: Length of `steering_vector`, in residual units.
        residual_norm: Mean norm of the residual stream there.
        context_ids: Exact ids before the pivot.
        token_id: Id of the token that was taken.
        token_delta: Its effect on P(success).
        rollouts: Judged rollouts behind `prob_after`.
    """

    vector: str
    method: str
    calibrated_strength: float
    residual_norm: float
    context_ids: tuple[int, ...]
    token_id: int
    token_delta: float
    rollouts: int


@dataclass(frozen=True, slots=True)
class VectorRow:
    """A row of `pts-steering-vectors`."""

    query: str
    pivot_context: str
    pivot_token: str
    pivot_token_id: int
    prob_before: float | None
    prob_after: float | None
    prob_delta: float
    model_id: str
    task_type: str
    steering_vector: tuple[float, ...]
    cluster_id: int
    reasoning_pattern: str
    cluster_vector: tuple[float, ...]
    steering_layer: int
    metadata: VectorEvidence


@dataclass(frozen=True, slots=True)
class VectorRow2(VectorRow):
    """The same in version 2."""

    schema_version: str = "2.0"
