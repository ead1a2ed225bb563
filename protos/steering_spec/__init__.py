"""The contract of the steering API in Python: types, limits, admissibility, and protobuf conversion.

Imports no torch. Everybody else builds on it: the client constructs these types, the server checks requests with
`steering_spec.admission`, and only `steering_spec.convert` turns them into protobuf messages and back.
"""

from steering_spec.admission import request_violations
from steering_spec.completion import (
    Completion,
    FinishReason,
    SteeringAct,
    StreamDelta,
    Token,
    TokenLogprob,
    TriggerKind,
    Usage,
)
from steering_spec.facts import ModelFacts, VectorFacts
from steering_spec.naming import VectorRef
from steering_spec.request import (
    Chat,
    ChatMessage,
    GenerationSpec,
    Prompt,
    PromptIds,
    PromptText,
    SamplingParams,
)
from steering_spec.resources import (
    ModelInfo,
    ServerStats,
    VectorCentroids,
    VectorInfo,
    VectorLayer,
    VectorProbe,
)
from steering_spec.steering import (
    Ablate,
    Add,
    Clamp,
    Clause,
    ConflictPolicy,
    ContextTrigger,
    Operation,
    Phase,
    Positions,
    Predicate,
    ProbeTrigger,
    Selector,
    SimilarityTrigger,
    SteeringRule,
    SteeringSpec,
    TokenSet,
    Trigger,
    Window,
)
from steering_spec.tokenizing import DetokenizeSpec, TokenizeSpec
from steering_spec.violation import InvalidRequestError, Violation, ViolationKind

__all__ = [
    "Ablate",
    "Add",
    "Chat",
    "ChatMessage",
    "Clamp",
    "Clause",
    "Completion",
    "ConflictPolicy",
    "ContextTrigger",
    "DetokenizeSpec",
    "FinishReason",
    "GenerationSpec",
    "InvalidRequestError",
    "ModelFacts",
    "ModelInfo",
    "Operation",
    "Phase",
    "Positions",
    "Predicate",
    "ProbeTrigger",
    "Prompt",
    "PromptIds",
    "PromptText",
    "SamplingParams",
    "Selector",
    "ServerStats",
    "SimilarityTrigger",
    "SteeringAct",
    "SteeringRule",
    "SteeringSpec",
    "StreamDelta",
    "Token",
    "TokenLogprob",
    "TokenSet",
    "TokenizeSpec",
    "Trigger",
    "TriggerKind",
    "Usage",
    "VectorCentroids",
    "VectorFacts",
    "VectorInfo",
    "VectorLayer",
    "VectorProbe",
    "VectorRef",
    "Violation",
    "ViolationKind",
    "Window",
    "request_violations",
]
