"""One running request: its tokens, text and steering decisions, filled by the engine's thread, read by its caller."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

from steering_engine.engine.base import EngineChunk, EngineRequest
from steering_engine.engine.occurrences import Occurrences
from steering_engine.engine.sampling import uniform
from steering_engine.engine.text import TextStream
from steering_engine.steering.batch import BatchDecisions
from steering_engine.steering.state import Answer, SteeringState
from steering_spec import FinishReason, SteeringAct, Token, TokenLogprob


class Run:
    """State of one request; `key` names it among all requests that the engine has ever had.

    The engine's thread calls `plan_rows`, `rows_done`, `accept` and `fail`; the caller's event loop calls `take` and
    waits on `ready`.

    Attributes:
        copies: Other runs that begin as copies of this one when its prompt is computed.
        occurrences: The tokens that are there already, counted where penalties depend on them.
        alternatives: What might have been drawn in place of the next token, where the request asks for it.
        steered_rows: Computed rows that something acted on.
    """

    def __init__(
        self,
        request: EngineRequest,
        key: str,
        text: TextStream,
        loop: asyncio.AbstractEventLoop,
        ready: asyncio.Event,
    ) -> None:
        self.request = request
        self.key = key
        self.loop = loop
        self.ready = ready
        self.copies = 0
        repeats = request.sampling.repetition_penalty != 1
        self.occurrences = Occurrences(request.prompt_ids if repeats else ())
        self.alternatives: tuple[TokenLogprob, ...] = ()
        self.cancelled = False
        self.finish_reason: FinishReason | None = None
        self.steered_rows = 0
        self._text = text
        self._steering = SteeringState(request.plan, request.prompt_ids) if request.plan else None
        self._step = 0
        self._rows_seen = 0
        self._lock = threading.Lock()
        self._error: Exception | None = None
        self._submitted = time.perf_counter()
        self._first_token_seconds: float | None = None
        # What happened on rows is told together with the token that they lead to.
        self._acts_without_token: list[SteeringAct] = []
        self._new_tokens: list[Token] = []
        self._new_text = ""
        self._new_acts: list[SteeringAct] = []
        self._steered_rows_with_token = 0
        self._steered_rows_told = 0

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return self.cancelled or self.finish_reason is not None or self.failed

    @property
    def failed(self) -> bool:
        """Whether the request ended with an error."""
        return self._error is not None

    def uniform(self) -> float:
        """The random number that decides the next token."""
        return uniform(self.request.sampling.seed, self._step)

    @property
    def step(self) -> int:
        """Index of the next token."""
        return self._step

    @property
    def holds_back_ends(self) -> bool:
        """Whether the next token can't be an end-of-sequence token."""
        sampling = self.request.sampling
        return sampling.stop_at_eos and self._step < sampling.min_tokens

    @property
    def marks(self) -> Mapping[int, int]:
        """What forwards decided on rows (see `steering_engine.engine.salt`)."""
        return {} if self._steering is None else self._steering.marks

    def plan_rows(self, batch: BatchDecisions, offset: int, start: int, stop: int) -> None:
        """Adds to a forward what steering does on rows `[start, stop)`, the first of which stands at `offset` in it."""
        plan = self.request.plan
        if self._steering is None or plan is None or plan.first_row is None:
            return
        for row in range(max(start, plan.first_row), stop):
            at = offset + row - start
            if (candidates := self._steering.open_candidates(row)) is not None:
                batch.add_candidates(at, candidates, exclusive=plan.exclusive, owner=self.key)
            elif acts := self._steering.acts_on(row):
                batch.add_acts(at, acts)

    def rows_done(self, stop: int, answers: Mapping[int, Answer]) -> None:
        """Takes note that all rows before `stop` are computed, and of what the forward decided on the last of them.

        Rows that are reached for the first time count, those that came from shared pages too: the report says what a
        request's rows are, not which of them had to be computed.
        """
        plan = self.request.plan
        if self._steering is None or plan is None or plan.first_row is None:
            return
        self._steering.answer(answers)
        for row in range(max(self._rows_seen, plan.first_row), stop):
            if acts := self._steering.acts_on(row):
                self.steered_rows += 1
                if self.request.trace:
                    self._acts_without_token += [act.describe(row, plan.prompt_length) for act in acts]
        self._rows_seen = max(self._rows_seen, stop)

    def accept(self, token: Token, is_eos: bool) -> bool:
        """Takes the token of this step; returns whether the request is finished."""
        self._step += 1
        if self.request.sampling.penalises:
            self.occurrences.add(token.id)
        text = self._text.feed(token.id)
        reason = self._end(is_eos)
        if reason is not None:
            text += self._text.finish()
        try:
            closed = bool(text) and self.request.until is not None and self.request.until(text)
        except Exception as error:  # noqa: BLE001 -- the caller's own function; its caller gets whatever it raised
            self.fail(error)
            return True
        if closed:
            reason = FinishReason.STOP_SEQUENCE
            text += self._text.finish()
        elif reason is None and self._steering is not None:
            self._steering.accept(token.id)
        with self._lock:
            self._first_token_seconds = self._first_token_seconds or time.perf_counter() - self._submitted
            self._new_tokens.append(token)
            self._new_acts += self._acts_without_token
            self._acts_without_token = []
            self._steered_rows_with_token = self.steered_rows
            self._new_text += text
            self.finish_reason = reason
        return reason is not None

    def _end(self, is_eos: bool) -> FinishReason | None:
        """Why the request ends with the token just taken, as far as `until` has no say in it."""
        if self._text.stopped:
            return FinishReason.STOP_SEQUENCE
        if is_eos:
            return FinishReason.EOS
        return FinishReason.LENGTH if self._step >= self.request.sampling.max_tokens else None

    def fail(self, error: Exception) -> None:
        """Ends the request with an error, and wakes its caller."""
        self._error = error
        self.wake()

    def wake(self) -> None:
        """Tells the caller that something has come; callable from any thread."""
        with suppress(RuntimeError):  # a loop that has been closed has nobody waiting on it
            self.loop.call_soon_threadsafe(self.ready.set)

    def take(self) -> EngineChunk:
        """What has come since the last call.

        Raises:
            EngineError: The request failed.
            Exception: Its `until` raised this.
        """
        if self._error is not None:
            raise self._error
        with self._lock:
            chunk = EngineChunk(
                tuple(self._new_tokens),
                self._new_text,
                tuple(self._new_acts),
                self._steered_rows_with_token - self._steered_rows_told,
                self.finish_reason,
                self._first_token_seconds,
            )
            self._new_tokens, self._new_text, self._new_acts = [], "", []
            self._steered_rows_told = self._steered_rows_with_token
        return chunk
