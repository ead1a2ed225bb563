"""Linear probes that read off the residual stream whether a step is one of those wanted.

A logistic regression for each block. How strongly it is regularised, how well it tells steps apart, and from which
score on it should fire are all found out problem by problem: each fold's problems are scored by a probe that was fitted
without them. The probe that is kept is fitted to everything, and the standardisation of states is folded into it, so
that it reads raw states: `sigmoid(weight . h + bias)`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from steering_engine.vectors.schema import Probe
from steering_pts.vectors.folds import Known, fit_each_block, problem_folds, threshold_for

Array = NDArray[np.float64]

FALSE_POSITIVE_RATE = 0.002
"""Share of steps that are not wanted at which a trigger may fire: a step in 500."""

_PENALTIES = (0.01, 0.3, 10.0)  # scikit-learn's C, an inverse penalty, on standardised states
_MAX_ROUNDS = 2_000
_LARGEST_LOGIT = 15.0  # a threshold is kept as a probability, which must not round to 0 or 1


@dataclass(frozen=True, slots=True, eq=False)
class FittedProbe:
    """A probe of one block with how it did on problems that it was not fitted to.

    Attributes:
        probe: Reads raw states.
        threshold: Least probability that fires.
        auc: Area under the curve.
        recall: Share of the wanted steps at which it fires.
        false_positive_rate: Share of the other steps at which it does.
        penalty: The C that was chosen.
    """

    probe: Probe
    threshold: float
    auc: float
    recall: float
    false_positive_rate: float
    penalty: float


def probes_of(
    states: Mapping[int, torch.Tensor],
    targets: Sequence[bool | None],
    problem_ids: Sequence[str],
    false_positive_rate: float = FALSE_POSITIVE_RATE,
) -> dict[int, FittedProbe]:
    """A probe for each block.

    Args:
        states: `[steps, hidden]` float32 by block.
        targets: `[steps]` whether a step is wanted; None where that is unknown, and the step is left out.
        problem_ids: `[steps]` the problem of each: steps of one problem are alike, so they stay together.
        false_positive_rate: Share of the other steps at which the trigger may fire, on problems not fitted to.

    Returns:
        By block; none where fewer than two problems have a wanted step, or fewer than two another.
    """
    return fit_each_block(
        states, targets, problem_ids, lambda own, known: _fit(own, known, false_positive_rate)
    )


def _fit(states: Array, known: Known, false_positive_rate: float) -> FittedProbe:
    folds = problem_folds(known)
    trials = []
    for penalty in _PENALTIES:
        logits = np.empty(len(states))
        for held_out in folds:
            weight, bias = _regression(states[~held_out], known.wanted[~held_out], penalty)
            logits[held_out] = states[held_out] @ weight + bias
        trials.append((_loss(logits, known.wanted), penalty, logits))
    _, penalty, logits = min(trials, key=lambda trial: trial[:2])
    threshold = threshold_for(logits, known.wanted, false_positive_rate)
    bounded = min(max(threshold, -_LARGEST_LOGIT), _LARGEST_LOGIT)
    weight, bias = _regression(states, known.wanted, penalty)
    return FittedProbe(
        probe=Probe(torch.from_numpy(weight).float(), float(np.float32(bias))),
        threshold=1 / (1 + math.exp(-bounded)),
        auc=float(roc_auc_score(known.wanted, logits)),
        recall=float((logits[known.wanted] >= bounded).mean()),
        false_positive_rate=float((logits[~known.wanted] >= bounded).mean()),
        penalty=penalty,
    )


def _loss(logits: Array, wanted: NDArray[np.bool_]) -> float:
    """Mean log loss, rounded: of penalties that do alike, the strongest is taken."""
    probabilities = 1 / (1 + np.exp(-np.clip(logits, -30, 30)))
    return round(float(log_loss(wanted, probabilities, labels=[False, True])), 4)


def _regression(states: Array, wanted: NDArray[np.bool_], penalty: float) -> tuple[Array, float]:
    """Weight `[hidden]` and bias on raw states, fitted on standardised ones."""
    mean, deviation = states.mean(axis=0), states.std(axis=0)
    deviation = np.where(deviation > 0, deviation, 1.0)
    model = LogisticRegression(C=penalty, max_iter=_MAX_ROUNDS)
    with warnings.catch_warnings():
        # What it came to in so many rounds is judged on held-out problems, and its threshold set by them.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit((states - mean) / deviation, wanted)
    weight = model.coef_[0] / deviation
    return weight, float(model.intercept_[0] - weight @ mean)
