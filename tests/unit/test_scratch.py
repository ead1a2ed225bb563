"""Memory that a thread takes again at every step."""

from __future__ import annotations

import threading

import torch

from steering_engine.engine.scratch import scratch

LIKE = torch.zeros(1)


def test_the_memory_of_a_name_is_taken_again() -> None:
    first = scratch("again", (4, 5), LIKE)
    assert first.shape == (4, 5)
    assert scratch("again", (2, 3, 3), LIKE).data_ptr() == first.data_ptr()


def test_what_is_larger_than_before_gets_more_memory() -> None:
    scratch("grows", (4, 5), LIKE)
    assert scratch("grows", (100, 100), LIKE).fill_(1).sum() == 10_000


def test_names_and_threads_have_memory_of_their_own() -> None:
    mine = scratch("mine", (3,), LIKE).fill_(1)
    other = scratch("other", (3,), LIKE).fill_(2)
    thread = threading.Thread(target=lambda: scratch("mine", (3,), LIKE).fill_(3))
    thread.start()
    thread.join()
    assert (mine.tolist(), other.tolist()) == ([1] * 3, [2] * 3)


def test_it_has_the_dtype_that_is_asked_for_or_that_of_the_other_tensor() -> None:
    assert scratch("double", (3,), LIKE, torch.float64).dtype == torch.float64
    assert scratch("half", (3,), LIKE.half()).dtype == torch.float16


def test_memory_from_inference_mode_can_be_written_to_outside_of_it() -> None:
    with torch.inference_mode():
        scratch("inference", (3,), LIKE)
    assert scratch("inference", (3,), LIKE).fill_(1).tolist() == [1] * 3
