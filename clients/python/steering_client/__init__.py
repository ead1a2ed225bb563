"""The client of a steering server, synchronous and for asyncio. Needs grpc and protobuf only.

    from steering_client import Client, SamplingParams, Selector, SteeringRule

    with Client("127.0.0.1:50051") as client:
        rule = SteeringRule("strategy", strength=1.5, selector=Selector.steps(0))
        with client.stream("What is 17 * 23?", steering=rule, sampling=SamplingParams(seed=1)) as stream:
            for delta in stream:
                print(delta.text, end="", flush=True)
        print(stream.completion.finish_reason)

Requests are built from the types of `steering_spec`, which are given here too. Errors are those of
`steering_client.errors`, whose first lines draw their tree.
"""

from steering_client.async_client import AsyncClient
from steering_client.client import Client
from steering_client.errors import (
    AlreadyExistsError,
    CallCancelledError,
    ConnectionFailedError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    SteeringError,
    UnauthenticatedError,
    UnavailableError,
)
from steering_client.security import Tls
from steering_client.streams import AsyncCompletionStream, CompletionStream
from steering_spec import (
    Ablate,
    Add,
    Chat,
    ChatMessage,
    Clamp,
    Clause,
    Completion,
    ConflictPolicy,
    ContextTrigger,
    FinishReason,
    ModelInfo,
    Phase,
    Positions,
    ProbeTrigger,
    PromptIds,
    PromptText,
    SamplingParams,
    Selector,
    ServerStats,
    SimilarityTrigger,
    SteeringAct,
    SteeringRule,
    SteeringSpec,
    StreamDelta,
    Token,
    TokenLogprob,
    TokenSet,
    TriggerKind,
    Usage,
    VectorCentroids,
    VectorInfo,
    VectorLayer,
    VectorProbe,
    Violation,
    Window,
)

__all__ = [
    "Ablate",
    "Add",
    "AlreadyExistsError",
    "AsyncClient",
    "AsyncCompletionStream",
    "CallCancelledError",
    "Chat",
    "ChatMessage",
    "Clamp",
    "Clause",
    "Client",
    "Completion",
    "CompletionStream",
    "ConflictPolicy",
    "ConnectionFailedError",
    "ContextTrigger",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "FinishReason",
    "InternalError",
    "InvalidArgumentError",
    "ModelInfo",
    "NotFoundError",
    "PermissionDeniedError",
    "Phase",
    "Positions",
    "ProbeTrigger",
    "PromptIds",
    "PromptText",
    "ResourceExhaustedError",
    "SamplingParams",
    "Selector",
    "ServerStats",
    "SimilarityTrigger",
    "SteeringAct",
    "SteeringError",
    "SteeringRule",
    "SteeringSpec",
    "StreamDelta",
    "Tls",
    "Token",
    "TokenLogprob",
    "TokenSet",
    "TriggerKind",
    "UnauthenticatedError",
    "UnavailableError",
    "Usage",
    "VectorCentroids",
    "VectorInfo",
    "VectorLayer",
    "VectorProbe",
    "Violation",
    "Window",
]
