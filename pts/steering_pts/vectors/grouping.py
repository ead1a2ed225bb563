"""Which decisions are alike, so that one vector serves them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import AgglomerativeClustering  # type: ignore[import-untyped, unused-ignore]

from steering_pts.vectors.contexts import LEAST_MATCH
from steering_pts.vectors.events import PivotEvent, problem_folds

GroupBy = Literal["clusters", "tokens"]

MOST_GROUPS = 16
_MOST_CLUSTERED = 1000  # the tree takes the square of this in memory; the rest joins what is nearest
_ERRORS = 2.5
_NOT_WORTH_A_GROUP = 0.02  # of cosine
_TINY = 1e-9

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Grouping:
    """Decisions in groups.

    Attributes:
        groups: The groups, the largest first.
        rest: Decisions in none of them.
        left_out: One sentence for every kind of decision in `rest`, with the reason.
        alignment: Where the number of groups was chosen on held-out decisions, for each number what it came to.
    """

    groups: tuple[tuple[PivotEvent, ...], ...]
    rest: tuple[PivotEvent, ...]
    left_out: tuple[str, ...]
    alignment: tuple[float, ...] = ()


def group_by_tokens(events: Sequence[PivotEvent], min_events: int) -> Grouping:
    """Groups decisions between the same two tokens, then what is left by the two ids before it.

    Args:
        events: The decisions.
        min_events: Fewest decisions of a group.
    """
    groups: list[tuple[PivotEvent, ...]] = []
    remaining: list[PivotEvent] = []
    for members in _by_key(events, lambda event: (event.chosen_id, event.rejected_id)).values():
        if len(members) >= min_events:
            groups.append(tuple(members))
        else:
            remaining += members
    rest: list[PivotEvent] = []
    for members in _by_key(remaining, lambda event: event.context[-LEAST_MATCH:]).values():
        if len(members) >= min_events and len(members[0].context) >= LEAST_MATCH:
            groups.append(tuple(members))
        else:
            rest += members
    return Grouping(_largest_first(groups), tuple(rest), _too_rare(rest, min_events))


def group_by_clusters(
    events: Sequence[PivotEvent], prefix: Floats, difference: Floats, min_events: int
) -> Grouping:
    """Groups decisions that are taken from like states towards like differences.

    At each of some blocks a decision has two unit vectors: the difference of its better and its worse token's states,
    and the state that takes the decision, around the mean of these. All of them, one after the other, are clustered by
    Ward's method, whose tree is the same every time.

    **How many groups** is chosen on held-out decisions, problem-wise. For every number k, the decisions of four fifths
    of the problems are clustered and each cluster gets its vector, the weighted mean difference. A decision of the
    other problems is then given to the cluster whose mean state is nearest to its own, which is all that a trigger can
    go by, and scores the cosine between its own difference and that cluster's vector, the mean over the blocks: 0
    where the cluster is too small for a vector. The number is the smallest whose weighted mean score is behind the best
    one's by no more than 2.5 standard errors of that difference, or by 0.02, which is not worth another group. (After
    Breiman et al., Classification and Regression Trees, 1984, section 3.4.3. The error is that of the difference, on
    the same decisions, as if it were none and its sign on each problem were chance: so what most decisions don't care
    about does not drown what a rare kind gains. It is 2.5 errors, not one, because the best of many numbers is best by
    chance too.)

    Args:
        events: The decisions.
        prefix: States of the rows that take them, `[events, blocks, hidden]`.
        difference: States at the better tokens less those at the worse ones, `[events, blocks, hidden]`.
        min_events: Fewest decisions of a group.
    """
    scores = _held_out_scores(events, prefix, difference, min_events)
    count = _smallest_good_number(scores, events)
    labels = _Clusters(prefix, difference).labels(count)
    members = [tuple(events[i] for i in np.flatnonzero(labels == label).tolist()) for label in range(count)]
    rest = [event for group in members if len(group) < min_events for event in group]
    weights = np.array([event.weight for event in events])
    return Grouping(
        _largest_first([group for group in members if len(group) >= min_events]),
        tuple(rest),
        _too_rare(rest, min_events),
        tuple(float(np.average(row, weights=weights)) for row in scores),
    )


def _held_out_scores(
    events: Sequence[PivotEvent], prefix: Floats, difference: Floats, min_events: int
) -> list[Floats]:
    """For every number of groups from 1 on, each decision's score `[events]` when its problem was held out."""
    problems = [event.problem_id for event in events]
    if len(set(problems)) < 2:
        return [np.zeros(len(events))]
    folds = np.array(problem_folds(problems))
    weights = np.array([event.weight for event in events])
    smallest_part = len(events) - np.bincount(folds).max()
    most = max(1, min(MOST_GROUPS, len(events) // max(2, min_events), smallest_part))
    scores: list[Floats] = [np.zeros(len(events)) for _ in range(most)]
    units = _unit(difference)
    for fold in range(folds.max() + 1):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        clusters = _Clusters(prefix[train], difference[train])
        # Of a kind that has just enough decisions for a group, chance may hold out half.
        least = min(min_events, max(2, min_events / 2))
        for count in range(1, most + 1):
            labels = clusters.labels(count)
            members = [train[labels == label] for label in range(count)]
            means = np.stack([_flat(prefix[at].mean(0)[None])[0] for at in members])
            vectors = _unit(np.stack([np.tensordot(weights[at], difference[at], axes=1) for at in members]))
            vectors[[len(at) < least for at in members]] = 0
            nearest = _nearest(_flat(prefix[test]), means)
            scores[count - 1][test] = (vectors[nearest] * units[test]).sum(-1).mean(-1)
    return scores


def _smallest_good_number(scores: Sequence[Floats], events: Sequence[PivotEvent]) -> int:
    """The smallest number of groups that is not clearly worse than the best; see `group_by_clusters`."""
    weights = np.array([event.weight for event in events])
    best = max(scores, key=lambda row: float(np.average(row, weights=weights)))
    for number, row in enumerate(scores, start=1):
        behind = best - row
        mean = float(np.average(behind, weights=weights))
        of_problem: dict[str, float] = defaultdict(float)  # decisions of one problem are not independent
        for event, weight, value in zip(events, weights, behind, strict=True):
            of_problem[event.problem_id] += weight * value
        error = float(np.sqrt(sum(one**2 for one in of_problem.values())) / weights.sum())
        if mean <= max(_ERRORS * error, _NOT_WORTH_A_GROUP):
            return number
    raise AssertionError("the best is not behind itself")


class _Clusters:
    """Decisions by their features, in any number of clusters."""

    def __init__(self, prefix: Floats, difference: Floats) -> None:
        features = np.hstack([_flat(_unit(difference)), _flat(_unit(prefix - prefix.mean(0)))])
        # Evenly spread over the run, where decisions of one problem stand together.
        self._sample = np.unique(np.linspace(0, len(features) - 1, _MOST_CLUSTERED).round().astype(int))
        sample = features[self._sample]
        if sample.shape[0] < sample.shape[1]:
            # As many numbers as decisions tell all their distances apart: the triangular factor holds the same ones.
            sample = np.asarray(np.linalg.qr(sample.T, mode="r")).T
        self._coordinates: Floats = sample
        self._features = features

    def labels(self, count: int) -> NDArray[np.int64]:
        """The cluster of each decision, `[decisions]`, from 0 to `count` - 1."""
        if count == 1:
            return np.zeros(len(self._features), dtype=np.int64)
        found = AgglomerativeClustering(count, linkage="ward").fit_predict(self._coordinates)
        sample = self._features[self._sample]
        means = np.stack([sample[found == label].mean(0) for label in range(count)])
        labels = _nearest(self._features, means)
        labels[self._sample] = found
        return labels


def _nearest(rows: Floats, centres: Floats) -> NDArray[np.int64]:
    """Index of the nearest centre of each row, `[rows]`; by products, so that no third dimension is needed."""
    distances = (centres**2).sum(1) - 2 * rows @ centres.T
    nearest: NDArray[np.int64] = distances.argmin(1)
    return nearest


def _unit(states: Floats) -> Floats:
    """States at unit length, each block's by itself; zero stays zero."""
    lengths: Floats = np.linalg.norm(states, axis=-1, keepdims=True).clip(min=_TINY)
    units: Floats = states / lengths
    return units


def _flat(states: Floats) -> Floats:
    """The states of all blocks one after the other, `[events, blocks * hidden]`."""
    return states.reshape(len(states), -1)


def _too_rare(rest: Sequence[PivotEvent], min_events: int) -> tuple[str, ...]:
    if not rest:
        return ()
    return (f"{len(rest)} decisions of kinds that were seen fewer than {min_events} times",)


def _largest_first(groups: Sequence[tuple[PivotEvent, ...]]) -> tuple[tuple[PivotEvent, ...], ...]:
    return tuple(sorted(groups, key=lambda group: -len(group)))


def _by_key(
    events: Sequence[PivotEvent], key: Callable[[PivotEvent], Hashable]
) -> dict[Hashable, list[PivotEvent]]:
    groups: dict[Hashable, list[PivotEvent]] = defaultdict(list)
    for event in events:
        groups[key(event)].append(event)
    return groups
