"""What calibration and evaluation have left in a run's folder, checked when it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from steering_pts.errors import ReportError

Scalar = str | int | float | bool | None
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Result = TypeVar("Result", bound=BaseModel)


class _Part(BaseModel):
    # A later version may say more; what is missing or of another type is an error.
    model_config = ConfigDict(extra="ignore", frozen=True)


class EvaluatedVector(_Part):
    """A vector that took part."""

    name: str
    sha256: str = ""
    block: int | list[int] | None = None
    method: str = ""
    strength: Finite | list[Finite] | None = None


class EvaluatedArm(_Part):
    """One way of steering, and what it came to."""

    name: str
    kind: str
    n: Count
    success: Share
    low: Share
    high: Share
    censored: Finite | None = None
    tokens_mean: Finite | None = None
    truncated: Finite | None = None
    repetition: Finite | None = None
    steered_steps_mean: Finite | None = None


class Lift(_Part):
    """The paired difference of an arm and the unsteered one."""

    arm: str
    value: Finite
    low: Finite
    high: Finite
    permutation_p: Share | None = None
    holm_p: Share | None = None


class Divergence(_Part):
    """KL divergence per token, in nats."""

    mean: Finite
    p95: Finite | None = None


class GroupSuccess(_Part):
    """Success on the problems that share a field's value."""

    n: Count
    unsteered: Share
    steered: Share
    low: Finite | None = None
    high: Finite | None = None


class RandomVectors(_Part):
    """What random vectors of the same norm did."""

    vectors: Count
    mean_lift: Finite
    low: Finite | None = None
    high: Finite | None = None
    permutation_p: Share | None = None


class Evaluation(_Part):
    """`evaluation.json`, which `pts evaluate` writes."""

    schema_name: Literal["steering.evaluation/1"] = Field(alias="schema")
    created: str = ""
    model: str = ""
    dataset: str = ""
    problems: Count
    samples_per_problem: Count | None = None
    seed: int | None = None
    vectors: list[EvaluatedVector] = Field(default_factory=list)
    arms: list[EvaluatedArm]
    lifts: list[Lift] = Field(default_factory=list)
    kl_unsteered_steps: Divergence | None = None
    kl_neutral_text: Divergence | None = None
    by_group: dict[str, dict[str, GroupSuccess]] = Field(default_factory=dict)
    random: RandomVectors | None = None
    strength_0_identical: bool | None = None
    remarks: list[str] = Field(default_factory=list)


class Setting(_Part):
    """A method, block, strength and trigger that was tried; the strength is what the file's own is multiplied by."""

    method: str
    block: int
    strength: Finite
    trigger: str | dict[str, Any]
    problems: Count
    solved: Finite
    lift: Finite | None
    kl: Finite | None = None
    kept: bool = False
    residual_strength: Finite | None = None


class Chosen(_Part):
    """The setting that was best; `kept` where its lift was certain, so that there is a file of it."""

    method: str | None = None
    block: int | None = None
    strength: Finite | None = None
    residual_strength: Finite | None = None
    trigger: str | dict[str, Any] | None = None
    kept: bool = True


class Effect(_Part):
    """What steering did to problems that nothing was chosen on."""

    problems: Count | None = None
    unsteered: Share | None = None
    steered: Share | None = None
    lift: Finite | None = None
    low95: Finite | None = None
    high95: Finite | None = None
    kl: Finite | None = None
    steered_steps_mean: Finite | None = None


class CalibratedGroup(_Part):
    """The search for one group's setting."""

    name: str
    rounds: list[Any] = Field(default_factory=list)
    settings: list[Setting]
    chosen: Chosen | None = None
    reason: str | None = None
    rollouts: Count | None = None
    grid_rollouts: Count | None = None
    test: Effect | None = None


class Grid(_Part):
    """The full grid beside the search, where it was asked for: success of what each chose, all groups together."""

    chosen: Share
    best_of_grid: Share


class Calibration(_Part):
    """`calibration.json`, which `pts calibrate` writes."""

    schema_name: Literal["steering.calibration/1"] = Field(alias="schema")
    groups: list[CalibratedGroup]
    together: Effect | None = None
    test: Effect | None = None
    grid: Grid | None = None


def read_result(path: Path, kind: type[Result]) -> Result | None:
    """A file of results; None where there is none.

    Raises:
        ReportError: It can't be read; the error holds everything that is wrong.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ReportError(path, [f"can't be read: {error.strerror}"]) from error
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, fault['loc'])) or 'the file'}: {fault['msg']}" for fault in error.errors()
        ]
        raise ReportError(path, faults) from error
