"""From the chunks of the engine to what a request gives back."""

from __future__ import annotations

import time

from steering_engine.engine.base import EngineChunk, EngineRequest
from steering_spec import Completion, FinishReason, SteeringAct, StreamDelta, Token, Usage


class GrowingCompletion:
    """One completion while it is generated."""

    def __init__(self, request: EngineRequest, *, index: int, request_id: str, accepted: float) -> None:
        """Begins one.

        Args:
            request: What the engine is asked for.
            index: Which of the completions of one spec this is.
            request_id: The id that is told.
            accepted: `time.perf_counter()` of when the spec came.
        """
        self._request = request
        self._index = index
        self._request_id = request_id
        self._accepted = accepted
        self._submitted = accepted
        self._first_token = 0.0
        self._tokens: list[Token] = []
        self._acts: list[SteeringAct] = []
        self._texts: list[str] = []
        self._steered_rows = 0

    def submit(self) -> None:
        """Takes note that the engine gets it now: what went before, the wait for a turn above all, is time too."""
        self._submitted = time.perf_counter()

    def add(self, chunk: EngineChunk) -> StreamDelta:
        """Takes a chunk; returns what is new."""
        self._first_token = self._submitted - self._accepted + (chunk.first_token_seconds or 0.0)
        self._tokens += chunk.tokens
        self._acts += chunk.acts
        self._texts.append(chunk.text)
        self._steered_rows += chunk.steered_rows
        return StreamDelta(chunk.text, chunk.tokens, chunk.acts, self._index)

    def finish(self, reason: FinishReason) -> Completion:
        """The whole completion, after its last chunk."""
        plan = self._request.plan
        return Completion(
            text="".join(self._texts),
            tokens=tuple(self._tokens),
            finish_reason=reason,
            usage=Usage(
                prompt_tokens=len(self._request.prompt_ids),
                generated_tokens=len(self._tokens),
                steered_rows=self._steered_rows,
                first_token_seconds=self._first_token,
                total_seconds=time.perf_counter() - self._accepted,
            ),
            seed=self._request.sampling.seed,
            request_id=self._request_id,
            applied_steering=None if plan is None else plan.applied,
            acts=tuple(self._acts),
            index=self._index,
        )
