"""What a request gives back: tokens, acts of steering, and the finished completion."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from steering_spec.steering import SteeringSpec


class FinishReason(Enum):
    """Why decoding ended.

    STOP_SEQUENCE also says, of a rollout, that its caller had seen enough (`until` of an engine's request). UNKNOWN is
    a reason that only newer servers give.
    """

    EOS = "eos"
    STOP_SEQUENCE = "stop_sequence"
    LENGTH = "length"
    UNKNOWN = "unknown"


class TriggerKind(Enum):
    """What a rule waited for before it acted; UNKNOWN is something that only newer servers know."""

    CONTEXT = "context"
    PROBE = "probe"
    SIMILARITY = "similarity"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token that might have been drawn: its id, and the log-probability that the sampler gave it."""

    id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token.

    Attributes:
        id: Its id.
        logprob: Natural logarithm of the probability that the sampler gave it.
        top_logprobs: The most likely tokens, most likely first, as far as the request asked for them and the sampler
            gave them any probability; the token itself is among them when it is one of the most likely.
    """

    id: int
    logprob: float
    top_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class SteeringAct:
    """One rule acting on one row.

    Attributes:
        rule_index: Index into the request's rules.
        layers: Blocks steered.
        step: Step of the row, or None when a prompt clause chose it.
        prompt_position: Prompt position of the row, or None when a step was chosen.
        trigger: What the rule had waited for; None when it acts always, and on rows that a prompt clause chose.
        score: What the trigger measured where it fired: matching tokens, a probability, or a cosine. None without a
            trigger, and where an earlier firing is held.
    """

    rule_index: int
    layers: tuple[int, ...]
    step: int | None = None
    prompt_position: int | None = None
    trigger: TriggerKind | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request cost; times in seconds from its acceptance."""

    prompt_tokens: int
    generated_tokens: int
    steered_rows: int
    first_token_seconds: float
    total_seconds: float


@dataclass(frozen=True, slots=True)
class StreamDelta:
    """Newly decoded tokens with the text that is now final, and the acts that led to them.

    `index` says of which completion, where a request makes several.
    """

    text: str
    tokens: tuple[Token, ...]
    acts: tuple[SteeringAct, ...] = ()
    index: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished completion.

    Attributes:
        text: Without special tokens, cut before a stop sequence.
        tokens: All tokens, those of the end and of a stop sequence included.
        finish_reason: Why decoding ended.
        usage: Counts and times.
        seed: The seed that this completion was drawn with.
        request_id: The request's id.
        applied_steering: The steering as applied, every vector with its digest; None when unsteered, and of newer
            servers also where it is made of something that this version has no type for.
        acts: The steering acts; empty unless the request asked for a trace.
        index: Which of the request's completions this is.
    """

    text: str
    tokens: tuple[Token, ...]
    finish_reason: FinishReason
    usage: Usage
    seed: int
    request_id: str
    applied_steering: SteeringSpec | None = None
    acts: tuple[SteeringAct, ...] = ()
    index: int = 0

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of all tokens."""
        return tuple(token.id for token in self.tokens)
