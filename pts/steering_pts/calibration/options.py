"""How calibration searches, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from steering_pts.errors import SearchError

TriggerKindName = Literal["context", "probe", "similarity", "always"]
TRIGGERS: tuple[TriggerKindName, ...] = get_args(TriggerKindName)


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """What competes, for how many rollouts, within which divergence.

    Attributes:
        multiples: Strengths that compete, as multiples of the length that the method gave its direction.
        triggers: Triggers that compete, where a vector file has what they need; `always` is a control.
        trigger_blocks: Where probes and centroids are read: `best` takes the one that a server takes when none is
            named, `all` lets each at or before the steered block compete.
        kl_budget: Most divergence from the unsteered model, in nats per token over the steps that are not steered.
        share: Most rollouts of the search, as a share of the full grid (every setting on every validation problem).
        samples: Completions of a validation problem, at most while settings compete, and always when the winner is
            confirmed.
        by: Field of the data set whose values must not be harmed; empty asks for none.
    """

    multiples: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    triggers: tuple[TriggerKindName, ...] = TRIGGERS
    trigger_blocks: Literal["best", "all"] = "best"
    kl_budget: float = 0.02
    share: float = 0.3
    samples: int = 4
    by: str = ""

    def __post_init__(self) -> None:
        faults = []
        if not self.multiples or not all(0 < one < math.inf for one in self.multiples):
            faults.append(f"strengths are {list(self.multiples)}; expected numbers above 0")
        if len(set(self.multiples)) != len(self.multiples):
            faults.append(f"strengths are {list(self.multiples)}; each may be given once")
        if unknown := sorted(set(self.triggers) - set(TRIGGERS)):
            faults.append(f"trigger {unknown[0]!r} is unknown; expected {', '.join(TRIGGERS)}")
        if not self.triggers:
            faults.append(f"no trigger competes; expected some of {', '.join(TRIGGERS)}")
        if self.trigger_blocks not in ("best", "all"):
            faults.append(f"trigger blocks are {self.trigger_blocks!r}; expected best or all")
        if not 0 < self.kl_budget < math.inf:
            faults.append(f"the KL budget is {self.kl_budget}; expected above 0")
        if not 0 < self.share <= 1:
            faults.append(f"the share is {self.share}; expected above 0, at most 1")
        if self.samples < 1:
            faults.append(f"samples are {self.samples}; expected at least 1")
        if faults:
            raise SearchError("; ".join(faults))
