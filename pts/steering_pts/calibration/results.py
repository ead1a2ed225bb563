"""What a calibration came to, and `calibration.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from steering_engine.vectors.schema import HeldOutLift
from steering_pts.calibration.halving import Round, Standing
from steering_pts.calibration.settings import Setting

SCHEMA: Final = "steering.calibration/1"


@dataclass(frozen=True, slots=True)
class Effect:
    """What an arm did on draws that had no part in choosing it, against the unsteered arm.

    Attributes:
        lift: The difference of success rates with its 95 % interval.
        samples: Completions of each problem.
        kl: Nats per counted token; None where steering broke the logits.
        steered_steps: Mean number of steps that a rule acted at, of a completion.
        by: By value of the field asked for, the same difference.
    """

    lift: HeldOutLift
    samples: int
    kl: float | None
    steered_steps: float
    by: Mapping[str, HeldOutLift]


@dataclass(frozen=True, slots=True)
class GroupResult:
    """The calibration of one group.

    Attributes:
        name: Of the group.
        events: Decisions that its vectors were made from.
        rounds: The rounds of the search.
        standings: What became of every setting.
        chosen: The best setting; None where none stayed within the budget of divergence.
        effect: What it did on the problems kept for that; None without a chosen one.
        reason: Why the group gets no file, in one sentence; empty where it gets one.
        rollouts: Measurements of the search, those of the unsteered arm included.
        grid_rollouts: What the full grid takes: every setting, and the unsteered arm, once for each validation problem.
        budget: Most that the search was to take; exceeded where there are too few problems for so many settings.
    """

    name: str
    events: int
    rounds: tuple[Round, ...]
    standings: tuple[Standing, ...]
    chosen: Setting | None
    effect: Effect | None
    reason: str
    rollouts: int
    grid_rollouts: int
    budget: int

    @property
    def kept(self) -> bool:
        """Whether the group gets a file."""
        return self.chosen is not None and not self.reason


@dataclass(frozen=True, slots=True)
class GroupGrid:
    """The chosen setting of a group beside the best of the full grid, as success on draws that neither was chosen on.

    Attributes:
        name: Of the group.
        unsteered: Success of the unsteered arm.
        chosen: Success of the chosen setting; of the unsteered arm where none was chosen.
        best: The best setting of the grid; None where none stayed within the budget of divergence.
        best_of_grid: Its success.
    """

    name: str
    unsteered: float
    chosen: float
    best: Setting | None
    best_of_grid: float


@dataclass(frozen=True, slots=True)
class GridComparison:
    """How near a search came to the full grid.

    Attributes:
        groups: Group by group.
        chosen: Success of all that are kept, together.
        best_of_grid: Success of the best settings of the grid, together.
    """

    groups: tuple[GroupGrid, ...]
    chosen: float
    best_of_grid: float

    def as_json(self) -> dict[str, Any]:
        """What `calibration.json` holds of it."""
        return {
            "chosen": self.chosen,
            "best_of_grid": self.best_of_grid,
            "groups": [
                {
                    "name": one.name,
                    "unsteered": one.unsteered,
                    "chosen": one.chosen,
                    "best": None if one.best is None else _setting(one.best),
                    "best_of_grid": one.best_of_grid,
                }
                for one in self.groups
            ],
        }


@dataclass(frozen=True, slots=True)
class CalibrationResult:
    """The calibration of all groups.

    Attributes:
        groups: In the order given.
        together: What all that are kept do together; None where none is.
        test: The same on the test split; None without one.
        problems: Ids of the validation problems: those that settings were chosen and confirmed on.
        generated: Completions that were made for it in all, tests included; fewer than measurements, because a
            completion in which no rule would act is that of the unsteered arm.
        grid: The full grid beside it; None where it was not asked for.
    """

    groups: tuple[GroupResult, ...]
    together: Effect | None
    test: Effect | None
    problems: tuple[str, ...]
    generated: int
    grid: GridComparison | None = None

    def as_json(self) -> dict[str, Any]:
        """What `calibration.json` holds; nothing in it depends on when it was made or how often it was interrupted."""
        return {
            "schema": SCHEMA,
            "problems": len(self.problems),
            "problem_ids": sorted(self.problems),
            "generated": self.generated,
            "together": _effect(self.together),
            "test": _effect(self.test),
            "grid": None if self.grid is None else self.grid.as_json(),
            "groups": [_group(group, self.test) for group in self.groups],
        }


def _group(group: GroupResult, test: Effect | None) -> dict[str, Any]:
    last = len(group.rounds)
    return {
        "name": group.name,
        "events": group.events,
        "rounds": [one._asdict() for one in group.rounds],
        "settings": [
            {
                **_setting(one.setting),
                "problems": one.draws,
                "solved": one.solved,
                "lift": one.strength.lift,
                "kl": _finite(one.strength.kl),
                "rounds": one.rounds,
                "kept": one.rounds == last,
            }
            for one in group.standings
        ],
        "chosen": None
        if group.chosen is None
        else {**_setting(group.chosen), "kept": group.kept, "effect": _effect(group.effect)},
        "reason": group.reason,
        "rollouts": group.rollouts,
        "grid_rollouts": group.grid_rollouts,
        "budget": group.budget,
        "test": _effect(test) if group.kept else None,
    }


def _setting(setting: Setting) -> dict[str, Any]:
    return {
        "method": setting.method,
        "block": setting.block,
        "strength": setting.multiple,
        "residual_strength": setting.strength,
        "trigger": str(setting.trigger),
    }


def _effect(effect: Effect | None) -> dict[str, Any] | None:
    if effect is None:
        return None
    return {
        **effect.lift.model_dump(),
        "samples": effect.samples,
        "kl": effect.kl,
        "steered_steps_mean": effect.steered_steps,
        "by": {value: lift.model_dump() for value, lift in effect.by.items()},
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
