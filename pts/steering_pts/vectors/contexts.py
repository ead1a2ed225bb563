"""With how many of its last ids a context has to agree with a recorded one, for a group's vector to act there."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from steering_engine.steering.contexts import MAX_CONTEXT_TOKENS, ContextIndex
from steering_pts.vectors.events import EventGroup, PivotEvent, problem_folds, shared_suffix
from steering_pts.vectors.matching import QuietPlace

LEAST_MATCH = 2
"""Fewest equal ids: a trigger on a single token would fire almost anywhere."""
LEAST_QUALITY = 0.25
"""Least precision and least recall: with more than three wrong firings for a right one, or three decisions of four not
found, contexts don't tell where to act."""
_RECALL_WEIGHT = 2.0
_MOST_QUIET = 50_000  # of more, some are looked at, evenly spread, and each counts for several


def with_contexts(
    groups: Sequence[Sequence[PivotEvent]], quiet: Sequence[QuietPlace], left_over: Sequence[PivotEvent] = ()
) -> list[EventGroup]:
    """Groups with the shortest match that serves each best on problems whose contexts it has not seen.

    Problems are parted into folds. Each fold's places are matched with the group's contexts from the other folds: its
    own decisions should be found, other decisions and quiet places should not. Of all lengths, the one with the best
    F-measure is taken, recall counting twice as much as precision: a pivotal step that is missed costs the answer, one
    too many costs a little divergence. The shorter of equals, because it says more about contexts never seen. A group
    of one problem, where nothing can be held out, takes what all its contexts share.

    Args:
        groups: The decisions of each group.
        quiet: Places where nothing is decided.
        left_over: Decisions in no group, where a group's vector has no business either.
    """
    everything = [event for group in groups for event in group] + list(left_over)
    problems = list(dict.fromkeys(one.problem_id for one in everything))
    problems += [place.completion.problem_id for place in quiet]
    fold_of = dict(zip(problems, problem_folds(problems), strict=True))
    stride = max(1, math.ceil(len(quiet) / _MOST_QUIET))
    contexts = [(fold_of[one.completion.problem_id], one.context) for one in quiet[::stride]]
    return [
        EventGroup(tuple(group), _min_match(group, everything, contexts, stride, fold_of)) for group in groups
    ]


def _min_match(
    group: Sequence[PivotEvent],
    everything: Sequence[PivotEvent],
    quiet: Sequence[tuple[int, tuple[int, ...]]],
    each_counts: int,
    fold_of: dict[str, int],
) -> int:
    if len({event.problem_id for event in group}) < 2:
        shared = shared_suffix([event.context for event in group])
        return shared if shared >= LEAST_MATCH else 0
    folds = range(max(fold_of.values()) + 1)
    indices = [
        ContextIndex(event.context for event in group if fold_of[event.problem_id] != fold) for fold in folds
    ]
    own = {(event.completion_id, event.position, event.prefix_ids) for event in group}
    hits: Counter[int] = Counter()
    false: Counter[int] = Counter()
    for event in everything:
        counter = hits if (event.completion_id, event.position, event.prefix_ids) in own else false
        counter[indices[fold_of[event.problem_id]].longest_match(event.context)] += 1
    for fold, context in quiet:
        false[indices[fold].longest_match(context)] += each_counts
    best, best_score = 0, 0.0
    for length in range(LEAST_MATCH, MAX_CONTEXT_TOKENS + 1):
        found, wrong = _at_least(hits, length), _at_least(false, length)
        if not found:
            break
        precision, recall = found / (found + wrong), found / len(group)
        score = f_measure(precision, recall)
        if min(precision, recall) >= LEAST_QUALITY and score > best_score:
            best, best_score = length, score
    return best


def f_measure(precision: float, recall: float) -> float:
    """Weighted harmonic mean of precision and recall (van Rijsbergen's F), recall counting twice as much."""
    square = _RECALL_WEIGHT**2
    return (1 + square) * precision * recall / (square * precision + recall) if precision and recall else 0.0


def _at_least(counts: Counter[int], length: int) -> int:
    return sum(count for match, count in counts.items() if match >= length)
