"""What can come at a step, and what that alone says: without a rollout, most steps can't be pivotal.

The decision variance of a step is D = sum over tokens t of pi_t (V_t - V)^2, where pi_t is the sampler's probability
of t, V_t = P(success | prefix, t) and V = sum of pi_t V_t. All V_t lie in [0, 1], so the most likely token's pi bounds
D: a variable of which a share pi >= 1/2 has one value varies most when all else has the opposite value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from steering_engine.loading import LoadedModel
from steering_pts.scoring import step_distributions
from steering_pts.settings import SamplerSettings

_MOST_BRANCHES = 32


@dataclass(frozen=True, slots=True)
class Branches:
    """What the sampler can draw at a step.

    Attributes:
        ids: The likely tokens, the most likely first; at least one.
        probabilities: Theirs.
    """

    ids: tuple[int, ...]
    probabilities: tuple[float, ...]

    @property
    def rest(self) -> float:
        """Probability of all other tokens together."""
        return max(0.0, 1.0 - sum(self.probabilities))

    @property
    def largest_variance(self) -> float:
        """What the decision variance can't exceed, whatever each token leads to: pi (1 - pi), at most 1/4."""
        most = self.probabilities[0]
        return most * (1 - most) if most > 0.5 else 0.25


def branches_of(
    loaded: LoadedModel,
    completions: Sequence[tuple[Sequence[int], Sequence[int]]],
    sampler: SamplerSettings,
    least: float,
) -> list[tuple[Branches, ...]]:
    """The branches at every step of each completion, from one teacher-forced pass.

    Args:
        loaded: The model.
        completions: Pairs of prompt ids and generated ids.
        sampler: Whose probabilities they are.
        least: Tokens less likely than this belong to the rest, as do all after the 32 most likely.

    Returns:
        For each completion `[generated tokens]` branches.
    """
    found: list[list[Branches]] = [[] for _ in completions]
    for index, _, probabilities in step_distributions(loaded, completions, sampler):
        values, ids = probabilities.topk(min(_MOST_BRANCHES, probabilities.shape[-1]))
        kept = (values >= least).sum(-1).clamp(min=1).tolist()
        rows = zip(torch.unbind(ids.cpu()), torch.unbind(values.cpu()), kept, strict=True)
        found[index] += [Branches(tuple(i[:n].tolist()), tuple(v[:n].tolist())) for i, v, n in rows]
    return [tuple(own) for own in found]
