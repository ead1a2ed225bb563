"""The engine protocol: what a request is, what it yields, and what an engine promises.

An engine takes token ids and a compiled steering plan, and knows neither text prompts nor vector names. The server,
the rollouts of discovery and the tests all speak to this protocol, so what serves is what samples.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from steering_engine.steering.plan import SteeringPlan
from steering_spec import FinishReason, SteeringAct, Token


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling with every default filled in.

    Attributes:
        temperature: 0 means greedy.
        top_p: Nucleus in (0, 1]; 1 is off.
        top_k: Keep the k most likely tokens; 0 keeps all.
        max_tokens: Most tokens to generate, at least 1.
        seed: Decides every random choice of the request, alone or in any batch.
        stop: Generation ends before the first of these texts.
        stop_at_eos: False generates through end-of-sequence tokens (benchmarks).
        min_p: Keep tokens at least this share as likely as the most likely one; 0 keeps all.
        min_tokens: Before so many tokens no end-of-sequence token is drawn (unless generation goes through them) and no
            stop sequence is looked for.
        repetition_penalty: Positive logits of tokens in prompt or completion are divided by it, others multiplied; 1 is
            off.
        presence_penalty: Taken off the logits of tokens that the completion holds; 0 is off.
        frequency_penalty: The same, times how often the completion holds them; 0 is off.
        logit_bias: Pairs of id and what is added to its logit; of several for an id the last one counts.
        top_logprobs: Most likely alternatives that are told with each token; 0 tells none.
    """

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    seed: int
    stop: tuple[str, ...] = ()
    stop_at_eos: bool = True
    min_p: float = 0.0
    min_tokens: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    top_logprobs: int = 0

    @property
    def penalises(self) -> bool:
        """Whether a token's logit depends on which tokens are there already."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One completion to make.

    Attributes:
        request_id: Unique among running requests.
        prompt_ids: At least one id.
        sampling: How tokens are chosen.
        plan: The compiled steering; None means unsteered.
        streaming: Yield at every step; otherwise once, at the end.
        banned_first_ids: Ids that the first token can't be; the rest is renormalised. Stratified rollouts draw the
            alternative to a token this way, so they never pay for retaking it.
        until: Ends the request early. It is called on the engine's thread with each new piece of final text, in order
            and never empty, and the request ends with the token whose piece makes it return True; the finish reason
            is STOP_SEQUENCE then, and the tokens are the same whatever else is in the batch. It should take
            microseconds: the whole batch waits for it. When it raises, this request alone ends, with that error.
        trace: Whether chunks tell the acts of steering.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    plan: SteeringPlan | None = None
    streaming: bool = False
    banned_first_ids: tuple[int, ...] = ()
    until: Callable[[str], bool] | None = None
    trace: bool = False


@dataclass(frozen=True, slots=True)
class EngineChunk:
    """What happened since the last chunk.

    Attributes:
        tokens: New tokens, in order.
        text: Text that is now final: whole characters, never part of a stop sequence, no special tokens.
        acts: Steering acts on the rows that led to these tokens, where the request asks for a trace.
        steered_rows: How many of those rows were steered.
        finish_reason: Set on the last chunk only.
        first_token_seconds: From submission to the first token; None until there is one.
    """

    tokens: tuple[Token, ...]
    text: str
    acts: tuple[SteeringAct, ...] = ()
    steered_rows: int = 0
    finish_reason: FinishReason | None = None
    first_token_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts since start, and the load now."""

    active_requests: int
    waiting_requests: int  # completions of one prompt wait as one
    generated_tokens: int
    steered_rows: int
    free_cache_tokens: int  # unused pages, and those that are only kept for prefix sharing


Turn: TypeAlias = Callable[[Sequence[EngineRequest]], AbstractAsyncContextManager[None]]
"""Waits until the completions of one prompt may enter the engine; they have left it at the end of the block."""


class Engine(Protocol):
    """Generates completions for many requests in one batch, each steered by its own plan."""

    def submit(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """Starts a request and yields chunks; the last one has a finish reason.

        Closing the iterator (`contextlib.aclosing`) or cancelling its task frees the request's row at the next step.
        Must be called on a running event loop; one engine serves one loop at a time.

        Raises:
            ValueError: The id is running already, an id of the prompt is none of the model's, or prompt and completion
                together don't fit into the cache.
            NotFiniteError: The request's logits are not finite.
            Exception: Whatever the request's own `until` raised.
            EngineStoppedError: The engine stopped before the request was done.
        """
        ...

    def submit_many(
        self, requests: Sequence[EngineRequest], released: Callable[[], None] | None = None
    ) -> AsyncGenerator[tuple[int, EngineChunk], None]:
        """Starts completions of one prompt, which is computed once for all of them; yields chunks as they come.

        Each has the tokens that it would have alone, and may be cancelled alone by its id. Closing the iterator ends
        them all, and so does an error of any of them.

        Args:
            requests: At least one. They may differ in their ids, their seeds, `until` and `streaming`, and in nothing
                else.
            released: Called once, from any thread, when no forward will look at the requests' plans any more: once an
                iterator that was begun has ended, and its requests with it; of those that were cancelled or failed, at
                the step that frees their rows.

        Yields:
            The place of a completion in `requests`, and a chunk of it. The iterator ends after the last chunk of each.

        Raises:
            ValueError: The requests differ in more than they may, two have the same id, or what `submit` refuses.
            Exception: What `submit` raises.
        """
        ...

    def cancel(self, request_id: str) -> None:
        """Ends a request at the next step; its iterator stops without a finish reason. Unknown ids are ignored."""
        ...

    def stats(self) -> EngineStats:
        """The load now and the counts since start; callable from any thread."""
        ...

    def failure(self) -> str | None:
        """Why the engine takes no more requests; None while it runs. Callable from any thread."""
        ...

    async def close(self) -> None:
        """Stops at once; running requests end with EngineStoppedError. Safe to call twice."""
        ...
