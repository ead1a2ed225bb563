"""How a direction is made of the recorded states of alike decisions: a registry of methods, all deterministic.

A method is a function from `Material` to a vector `[hidden]` in residual units: its direction is what is steered along,
its length what a strength of 1 means before calibration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from steering_engine.loading import LoadedModel
from steering_pts.errors import MethodError
from steering_pts.vectors.events import PivotEvent, problem_halves
from steering_pts.vectors.optimising import optimised


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """What a direction is made of: decisions, and their states at one block.

    Attributes:
        loaded: The model, for methods that run it.
        events: The decisions.
        block: The block.
        prefix: resid_post of the row that takes each decision, `[events, hidden]` float32.
        chosen: resid_post of the better token's row after it, `[events, hidden]`.
        rejected: That of the worse token's, `[events, hidden]`.
        residual_norm: Mean norm of resid_post at decisions, over all events of the run.
    """

    loaded: LoadedModel
    events: Sequence[PivotEvent]
    block: int
    prefix: torch.Tensor
    chosen: torch.Tensor
    rejected: torch.Tensor
    residual_norm: float

    @property
    def weights(self) -> torch.Tensor:
        """|effect| of each decision, `[events]`."""
        return torch.tensor([event.weight for event in self.events])

    def part(self, rows: Sequence[int]) -> Material:
        """Some of the decisions."""
        at = list(rows)
        return Material(
            self.loaded,
            [self.events[row] for row in at],
            self.block,
            self.prefix[at],
            self.chosen[at],
            self.rejected[at],
            self.residual_norm,
        )


def paired_difference(chosen: torch.Tensor, rejected: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean difference of the states at the better and at the worse token, weighted by the pivots' effects.

    Contrastive activation addition (Rimsky et al., arXiv 2312.06681).

    Args:
        chosen: `[events, hidden]`.
        rejected: `[events, hidden]`.
        weights: `[events]`, positive.

    Returns:
        `[hidden]`, in residual units.
    """
    return (weights[:, None] * (chosen - rejected)).sum(0) / weights.sum()


def context_difference(prefix: torch.Tensor, effects: torch.Tensor) -> torch.Tensor:
    """Mean state before tokens that turned out for the better, minus that before those for the worse.

    With h_i the state of the row that takes decision i and e_i the effect of the token generated there:
    sum_{e_i > 0} e_i h_i / sum_{e_i > 0} e_i  -  sum_{e_i < 0} |e_i| h_i / sum_{e_i < 0} |e_i|.
    It sees what the model was about to do, never what token came, so it can steer where the choice has no word of its
    own. It tells apart what the two kinds of context have in common otherwise as well; held-out problems decide.

    Args:
        prefix: `[events, hidden]`.
        effects: `[events]`, signed.

    Returns:
        `[hidden]`, in residual units.

    Raises:
        MethodError: All effects have one sign.
    """
    better, worse = effects.clamp(min=0), (-effects).clamp(min=0)
    if not (better.any() and worse.any()):
        kind = "better" if better.any() else "worse"
        raise MethodError(
            f"context_difference needs tokens that turned out for the better and for the worse; all {len(effects)} "
            f"here turned out for the {kind}"
        )
    return (better @ prefix) / better.sum() - (worse @ prefix) / worse.sum()


def first_component(chosen: torch.Tensor, rejected: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """First principal component of the differences between the better and the worse token's states.

    With rows sqrt(w_i) (c_i - r_i): their first right singular vector v, pointing from worse to better in the weighted
    mean, as long as the differences' weighted mean along it. Differences are taken around zero, as if each pair came
    in both orders: subtracting their mean would remove the very thing that alike decisions share (representation
    engineering, Zou et al., arXiv 2310.01405). Against the mean, it follows what most pairs have in common, and a few
    long differences that point elsewhere turn it less.

    Args:
        chosen: `[events, hidden]`.
        rejected: `[events, hidden]`.
        weights: `[events]`, positive.

    Returns:
        `[hidden]`, in residual units; zero where the pairs don't agree on any side of it.
    """
    weight = weights.double() / weights.double().sum()
    differences = (chosen - rejected).double()
    scaled = weight.sqrt()[:, None] * differences
    # The smaller one of the two products has the same first component; float64 leaves its squares exact enough.
    if len(scaled) <= scaled.shape[1]:
        along = torch.linalg.eigh(scaled @ scaled.T).eigenvectors[:, -1] @ scaled
    else:
        along = torch.linalg.eigh(scaled.T @ scaled).eigenvectors[:, -1]
    norm = along.norm()
    if norm == 0:
        return torch.zeros_like(chosen[0])
    unit = along / norm
    length: torch.Tensor = weight @ (differences @ unit)
    component: torch.Tensor = length * unit
    return component.to(chosen.dtype)


Method = Callable[[Material], torch.Tensor]
LEAST_LENGTH: Final = 1e-5
"""Shortest vector that is a direction, in mean norms of the residual stream.

Equal states come out of batches of other shapes with other last digits (a float32 has 7), and a difference of those
points anywhere, with a length that calibration would multiply: `context_difference` at block 0 of a Gemma 2, say, where
prefixes that end with the same token differ in nothing yet.
"""

METHODS: Mapping[str, Method] = {
    "paired_difference": lambda of: paired_difference(of.chosen, of.rejected, of.weights),
    "context_difference": lambda of: context_difference(
        of.prefix, torch.tensor([event.effect for event in of.events])
    ),
    "pca": lambda of: first_component(of.chosen, of.rejected, of.weights),
    "optimised": lambda of: optimised(of.loaded, of.events, of.block, of.residual_norm),
}
"""Every method by name. Each raises `MethodError` where the decisions don't have what it needs."""


def is_direction(vector: torch.Tensor, residual_norm: float) -> bool:
    """Whether a vector `[hidden]` is longer than what rounding makes of states that are equal."""
    return float(vector.double().norm()) > LEAST_LENGTH * residual_norm


def split_half_cosine(method: Method, material: Material) -> float | None:
    """Reliability: the cosine between the vectors made of two halves of the decisions that share no problem.

    None where there are no halves, or where the method makes no direction of one of them.
    """
    halves = problem_halves(material.events)
    if halves is None:
        return None
    try:
        first, second = (method(material.part(half)).double() for half in halves)
    except MethodError:
        return None
    if not all(is_direction(half, material.residual_norm) for half in (first, second)):
        return None
    return float(torch.cosine_similarity(first, second, dim=0))
