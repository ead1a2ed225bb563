"""Texts that arrive in pieces."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import strategies as st

from steering_pts.data import Problem
from steering_pts.oracles.base import Oracle

cut_points = st.lists(st.integers(0, 400), max_size=8)


def cut(text: str, points: list[int]) -> list[str]:
    """The text in pieces, cut at these points (taken modulo its length)."""
    ends = sorted({0, len(text), *(point % (len(text) + 1) for point in points)})
    return [text[a:b] for a, b in pairwise(ends)]


def check_watcher(oracle: Oracle, problem: Problem, text: str, continuation: str, points: list[int]) -> None:
    """Once its watcher says closed, the verdict is that of any longer text; how the text is cut does not matter."""
    watcher, of_whole = oracle.watcher(problem), oracle.watcher(problem)
    assert watcher is not None
    assert of_whole is not None
    read, closed = "", False
    for piece in cut(text, points):
        read += piece
        was_closed, closed = closed, watcher(piece)
        assert closed or not was_closed
        if closed:
            now = oracle.judge(problem, read)
            assert now == oracle.judge(problem, read + continuation) == oracle.judge(problem, text)
    assert closed is of_whole(text)
