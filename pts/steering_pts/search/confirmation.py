"""Confirmation of nominees: how many fresh rollouts each needs, and what they say.

After the token in question, a rollout follows the completion to its end with a known probability f, and then has its
verdict V_T. So V = f V_T + (1 - f) B, and only B, the rate of success of rollouts that leave later, is estimated;
the alternative's rate A is the other binomial. The test is the score test of the linear contrast (1 - f) B - A, which
is Farrington and Manning's where f = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from steering_pts.ledger.records import ConfirmationRecord, NomineeRecord
from steering_pts.oracles.base import Verdict
from steering_pts.search.chain import Posterior
from steering_pts.search.exploration import NEGLIGIBLE
from steering_pts.search.trace import Trace
from steering_pts.settings import SearchSettings
from steering_pts.statistics import Estimate, contrast_interval, contrast_p

CONFIRM = "confirm"


@dataclass(slots=True)
class Counts:
    """Successes, failures and censored rollouts of one side."""

    successes: int = 0
    failures: int = 0
    censored: int = 0

    def add(self, verdict: Verdict) -> None:
        """One more rollout."""
        if verdict is Verdict.CORRECT:
            self.successes += 1
        elif verdict is Verdict.INCORRECT:
            self.failures += 1
        else:
            self.censored += 1

    @property
    def judged(self) -> int:
        """Rollouts with a verdict."""
        return self.successes + self.failures

    @property
    def all(self) -> int:
        """All rollouts."""
        return self.judged + self.censored


def sizes(
    trace: Trace, position: int, posterior: Posterior, index: int, settings: SearchSettings
) -> tuple[int, int]:
    """Rollouts (after the token, of alternatives) that confirm a nominee with the power asked for.

    They depend on the exploration alone, so the test of the fresh rollouts holds whatever they are. Each side gets
    them in proportion to its standard deviation (Neyman's allocation).
    """
    scale = trace.leave(position, trace.end_of[position])
    later = trace.leave(trace.end_of[position])
    value, alternative = float(posterior.value[index]), float(posterior.alternative[index])
    # Half a standard deviation less than expected, for exploration overstates what it nominates.
    effect = max(abs(float(posterior.effect[index])) - 0.5 * float(posterior.effect_sd[index]), settings.tau)
    gap = (effect - settings.delta0) / scale
    rest = (value - (1 - later) * trace.succeeded) / later if later > NEGLIGIBLE else 0.5
    spread_rest, spread_alternative = later * _spread(rest), _spread(alternative)
    z = float(special.ndtri(1 - settings.fdr) + special.ndtri(settings.power))
    each = (z / gap) ** 2 * (spread_rest + spread_alternative)

    def clipped(count: float) -> int:
        return int(np.clip(math.ceil(count), settings.confirm_least, settings.confirm_most))

    return clipped(each * spread_rest) if later > NEGLIGIBLE else 0, clipped(each * spread_alternative)


def _spread(rate: float) -> float:
    bounded = min(max(rate, 0.03), 0.97)
    return math.sqrt(bounded * (1 - bounded))


def confirmation(
    trace: Trace, nominee: NomineeRecord, on_path: Counts, alternative: Counts, settings: SearchSettings
) -> ConfirmationRecord:
    """What the fresh rollouts of a nominee say.

    Censored rollouts are bounds: in the test they count against the effect; the interval reaches from its low end
    with all of them against a positive effect to its high end with all of them for it; the estimate rests on the
    judged ones.
    """
    end = trace.end_of[nominee.position]
    scale = trace.leave(nominee.position, end)
    later = trace.leave(end)
    if not nominee.on_path:
        later = 0.0
    known = (1 - later) * trace.succeeded
    margin = settings.delta0 / scale
    low_value, high_value = (
        (on_path.successes, on_path.all),
        (on_path.successes + on_path.censored, on_path.all),
    )
    low_other = (alternative.successes, alternative.all)
    high_other = (alternative.successes + alternative.censored, alternative.all)
    if nominee.sign > 0:
        p_value = contrast_p(low_value, high_other, (later, 1.0), margin - known)
    else:
        p_value = contrast_p(low_other, high_value, (1.0, later), margin + known)
    effect = Estimate(0.0, -scale, scale)
    if (on_path.judged or not nominee.on_path) and alternative.judged:
        judged = (on_path.successes, on_path.judged), (alternative.successes, alternative.judged)
        against = contrast_interval(low_value, high_other, (later, 1.0), known, scale)
        favour = contrast_interval(high_value, low_other, (later, 1.0), known, scale)
        value = contrast_interval(*judged, (later, 1.0), known, scale).value
        effect = Estimate(value, min(against.low, value), max(favour.high, value))
    return ConfirmationRecord(
        completion_id=nominee.completion_id,
        position=nominee.position,
        x1=on_path.successes,
        n1=on_path.judged,
        censored1=on_path.censored,
        x2=alternative.successes,
        n2=alternative.judged,
        censored2=alternative.censored,
        leave=later,
        p_value=p_value,
        delta=effect.value,
        low=effect.low,
        high=effect.high,
    )
