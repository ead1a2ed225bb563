"""A request as the library sees it, tied to our `Run`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.generation.continuous_batching.requests import RequestState, RequestStatus

from steering_engine.engine.run import Run
from steering_spec import Token


class _Family(dict[str, Run]):
    """The runs that share a prompt, by key. The library copies states deeply; runs are what they are."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Family:
        return self


class _Unmarked(dict[str, int]):
    """Complete pages that can't be found yet, by kind of attention; a copy of a request has none."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Unmarked:
        return _Unmarked()


class State(RequestState):  # type: ignore[misc]  # the library has no types
    """The library's state of a request, tied to our `Run`.

    The library makes the states of completions that share a prompt out of the first one's: it copies it, or begins an
    equal one anew, and then gives the new state its id. So a state finds its run by its id.
    """

    family: _Family
    eos_ids: frozenset[int]
    unmarked: _Unmarked

    @classmethod
    def of(cls, family: Sequence[Run], eos_ids: frozenset[int]) -> State:
        """The state of the first of some runs that share a prompt; the library makes the others' of it."""
        request = family[0].request
        state = cls(
            request_id=family[0].key,
            initial_tokens=list(request.prompt_ids),
            max_new_tokens=request.sampling.max_tokens,
            eos_token_id=sorted(eos_ids) if request.sampling.stop_at_eos else -1,
            num_children=family[0].copies,
        )
        state.family = _Family((run.key, run) for run in family)
        state.unmarked = _Unmarked()
        state.eos_ids = eos_ids if request.sampling.stop_at_eos else frozenset()
        return state

    @property
    def run(self) -> Run:
        """Our side of the request."""
        return self.family[self.request_id]

    def update_and_check_completion(self, token_id: int, logprob: float | None) -> bool:
        """Hands a token to its run, which knows whether it is the last."""
        finished: bool = super().update_and_check_completion(token_id, None)
        # Of a run that failed there was nothing to sample, and the id means nothing. One that was cancelled before the
        # library knew its id would otherwise go on for ever.
        if self.run.failed or self.run.cancelled:
            self.status = RequestStatus.FINISHED
            return True
        token = Token(token_id, logprob or 0.0, self.run.alternatives)
        if self.run.accept(token, token_id in self.eos_ids) and not finished:
            self.status = RequestStatus.FINISHED
            finished = True
        return finished

    def create_equivalent_initial_request(self) -> State:
        """The state that goes on after a preemption: its tokens so far are the prompt."""
        state = super().create_equivalent_initial_request()
        state.__class__ = State
        state.family, state.eos_ids = self.family, self.eos_ids
        state.unmarked = _Unmarked()
        return state  # type: ignore[no-any-return]


def child_key(key: str, number: int) -> str:
    """The key of a run that begins as the copy of the one with the given key, once its prompt is computed."""
    return f"{key}__child#{number}"
