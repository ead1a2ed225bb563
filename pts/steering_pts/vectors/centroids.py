"""Centroids of the states at wanted steps, and from which cosine on a state counts as near one.

K-means of the states as they are, for a similarity trigger compares the raw residual stream. There all states share a
large component, so cosines between any two are high, and no fixed threshold says anything: it is set, as a probe's is,
by how often the trigger would fire at other steps of problems that the centroids were not made from. How many centroids
a block has is chosen by how many wanted steps of such problems they find.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import roc_auc_score

from steering_pts.vectors.folds import Known, fit_each_block, problem_folds, threshold_for
from steering_pts.vectors.probes import FALSE_POSITIVE_RATE

Array = NDArray[np.float64]

_COUNTS = (1, 2, 4, 8, 16)
_STARTS = 2
_SAME = 0.01  # recall that is no reason to have more centroids


@dataclass(frozen=True, slots=True, eq=False)
class FittedCentroids:
    """Centroids of one block with how they did on problems that they were not made from.

    Attributes:
        centroids: `[k, hidden]` float32.
        min_cosine: Least cosine to the nearest that fires.
        auc: Area under the curve of the largest cosine.
        recall: Share of the wanted steps at which it fires.
        false_positive_rate: Share of the other steps at which it does.
    """

    centroids: torch.Tensor
    min_cosine: float
    auc: float
    recall: float
    false_positive_rate: float


def centroids_of(
    states: Mapping[int, torch.Tensor],
    targets: Sequence[bool | None],
    problem_ids: Sequence[str],
    false_positive_rate: float = FALSE_POSITIVE_RATE,
) -> dict[int, FittedCentroids]:
    """Centroids for each block; see `probes_of` for what is taken, and when there are none."""
    return fit_each_block(
        states, targets, problem_ids, lambda own, known: _fit(own, known, false_positive_rate)
    )


def _fit(states: Array, known: Known, false_positive_rate: float) -> FittedCentroids:
    folds = problem_folds(known)
    # No more centroids than there are different states in any fold's rest.
    fewest = min(len(np.unique(states[known.wanted & ~held_out], axis=0)) for held_out in folds)
    best: FittedCentroids | None = None
    for count in _COUNTS:
        if count > fewest:
            break
        cosines = np.empty(len(states))
        for held_out in folds:
            centroids = _means(states[known.wanted & ~held_out], count)
            cosines[held_out] = largest_cosine(states[held_out], centroids)
        least = threshold_for(cosines, known.wanted, false_positive_rate)
        recall = float((cosines[known.wanted] >= least).mean())
        if best is not None and recall < best.recall + _SAME:
            continue
        best = FittedCentroids(
            centroids=torch.from_numpy(_means(states[known.wanted], count)).float(),
            min_cosine=min(max(least, -1.0), 1.0),
            auc=float(roc_auc_score(known.wanted, cosines)),
            recall=recall,
            false_positive_rate=float((cosines[~known.wanted] >= least).mean()),
        )
    assert best is not None  # noqa: S101 -- one centroid can always be made
    return best


def _means(states: Array, count: int) -> Array:
    means: Array = KMeans(count, n_init=_STARTS, random_state=0).fit(states).cluster_centers_
    return means


def largest_cosine(states: Array, centroids: Array) -> Array:
    """The cosine of each state `[rows, hidden]` to the nearest of some centroids, `[rows]`."""
    units = [
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30) for rows in (states, centroids)
    ]
    cosines: Array = (units[0] @ units[1].T).max(axis=1)
    return cosines
