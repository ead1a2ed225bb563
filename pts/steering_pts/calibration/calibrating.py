"""The calibration of groups: a search for each on one half of the problems, confirmed on the other, then all together.

The search's own figures are those of a winner, and too good. What is reported, and decides whether a vector is kept,
comes from problems that had no part in the search, because a setting can fit the problems as well as the dice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from steering_pts.calibration.candidates import CandidateGroup
from steering_pts.calibration.draws import DrawOrder, draws_of, halves
from steering_pts.calibration.effects import effect_of, harmed
from steering_pts.calibration.grid import compare_with_grid
from steering_pts.calibration.halving import Measure, Search, halve, schedule
from steering_pts.calibration.log import CalibrationLog, Draw, Outcome
from steering_pts.calibration.options import CalibrationOptions
from steering_pts.calibration.results import CalibrationResult, Effect, GridComparison, GroupResult
from steering_pts.calibration.settings import Setting, settings_of
from steering_pts.calibration.trials import UNSTEERED, Arm, Bench, Trials
from steering_pts.data import Problem
from steering_pts.errors import DataError

LEAST_PROBLEMS = 4
"""Two to choose on and two to confirm on: an interval needs two."""
_UNSTEERED_SHARE = 0.4  # of the budget


def calibrate_groups(
    groups: Sequence[CandidateGroup],
    bench: Bench,
    options: CalibrationOptions,
    log: CalibrationLog,
    validation: Sequence[Problem],
    test: Sequence[Problem] = (),
    *,
    grid_samples: int = 0,
) -> CalibrationResult:
    """Chooses a setting for each group, drops what does not help, and measures what is kept on the test problems.

    Args:
        groups: Their candidates are loaded into the model of `bench` (`load_candidates`).
        bench: What is measured on; its problems are those of both splits.
        options: What competes.
        log: Every measurement; a calibration that is begun again with the same log goes on, to the same result.
        validation: Problems to choose and confirm on; none that the vectors were made from.
        test: Problems that nothing is chosen on; measured once, at the end.
        grid_samples: Measure the full grid as well, with so many completions of each problem that settings are chosen
            on, to tell how near the search came to its best; 0 for no grid.

    Raises:
        DataError: There are too few validation problems, or some lack the field `options.by`.
    """
    check_problems([*validation, *test], validation, options.by)
    vectors = {group.ids[method]: vector for group in groups for method, vector in group.vectors.items()}
    settings = [setting for group in groups for setting in settings_of(group, options)]
    calibration = _Calibration(bench, options, Trials(bench, vectors, log, settings), tuple(validation))
    results = [calibration.group(group) for group in groups]
    results = calibration.drop_harmful(results)
    kept = Arm(tuple(one.chosen for one in results if one.kept and one.chosen is not None))
    together = calibration.effect(kept, calibration.confirming, "validation") if kept.settings else None
    tested = None
    if test and kept.settings:
        tested = calibration.effect(kept, draws_of(test, options.samples, bench.seed), "test")
    grid = calibration.grid(groups, results, grid_samples) if grid_samples else None
    generated = calibration.trials.generated
    ids = tuple(problem.id for problem in validation)
    return CalibrationResult(tuple(results), together, tested, ids, generated, grid)


def check_problems(problems: Sequence[Problem], validation: Sequence[Problem], by: str) -> None:
    """Whether a calibration can be made with these problems.

    Raises:
        DataError: It can't; everything that is wrong at once.
    """
    faults = []
    if len(validation) < LEAST_PROBLEMS:
        faults.append(
            f"there are {len(validation)} validation problems; at least {LEAST_PROBLEMS} are needed, better 100 or more"
        )
    if by and (lacking := [problem.id for problem in problems if by not in problem.fields]):
        faults.append(
            f"{len(lacking)} of {len(problems)} problems have no field {by!r}, the first {lacking[0]}"
        )
    if faults:
        raise DataError("calibration", faults)


@dataclass(frozen=True, slots=True)
class _Calibration:
    bench: Bench
    options: CalibrationOptions
    trials: Trials
    validation: tuple[Problem, ...]

    @property
    def confirming(self) -> list[Draw]:
        """The draws that have no part in the search."""
        _, kept_back = halves(self.validation, self.options.by, self.bench.seed)
        return draws_of(kept_back, self.options.samples, self.bench.seed)

    def group(self, group: CandidateGroup) -> GroupResult:
        """Searches for a group's setting and confirms it."""
        settings = settings_of(group, self.options)
        grid = (len(settings) + 1) * len(self.validation)
        choosing, _ = halves(self.validation, self.options.by, self.bench.seed)
        budget = int(self.options.share * grid)
        samples = max(1, min(self.options.samples, int(_UNSTEERED_SHARE * budget / len(choosing))))
        if not settings:
            reason = "no vector file of the group has the data for any of the triggers"
            return GroupResult(group.name, group.events, (), (), None, None, reason, 0, grid, budget)
        draws = draws_of(choosing, samples, self.bench.seed)
        self.trials.measure([(UNSTEERED, draws)], "unsteered")
        # Contexts say best where a group's decisions are; probes may be of other groups' decisions too.
        telling = [one for one in settings if one.trigger.kind == "context"] or settings
        order = DrawOrder.of(
            draws, {draw: any(self.trials.may_act(one, draw) for one in telling) for draw in draws}
        )
        rounds = schedule(len(settings), len(draws), budget - len(draws))
        search = halve(settings, order, rounds, self.options.kl_budget, self._measure(group.name))
        result = GroupResult(
            group.name,
            group.events,
            search.rounds,
            search.standings,
            None,
            None,
            "",
            search.measured + len(draws),
            grid,
            budget,
        )
        return self._confirm(result, search, order)

    def grid(
        self, groups: Sequence[CandidateGroup], results: Sequence[GroupResult], samples: int
    ) -> GridComparison:
        """The full grid of each group, chosen on the problems of the search and confirmed on the others."""
        choosing, _ = halves(self.validation, self.options.by, self.bench.seed)
        draws = draws_of(choosing, samples, self.bench.seed)[: len(self.validation)]
        return compare_with_grid(groups, results, self.trials, self.options, draws, self.confirming)

    def _measure(self, name: str) -> Measure:
        def measure(
            settings: Sequence[Setting | None], draws: Sequence[Draw], phase: str
        ) -> list[list[Outcome]]:
            jobs = [(UNSTEERED if one is None else Arm((one,)), draws) for one in settings]
            return self.trials.measure(jobs, f"{name}: {phase}")

        return measure

    def _confirm(self, result: GroupResult, search: Search, order: DrawOrder) -> GroupResult:
        """The best finalist that harms no value of the field, and what it does on fresh problems."""
        if not search.finalists:
            least = min(search.standings, key=lambda one: one.strength.kl)
            return replace(
                result,
                reason=f"no setting within {self.options.kl_budget:g} nats per token; the least divergence is "
                f"{least.strength.kl:.3g} ({least.setting})",
            )
        reason = ""
        chosen = search.standings[search.finalists[0]].setting
        for index in search.finalists:
            standing = search.standings[index]
            draws = order.draws[: standing.draws]
            values = self._harmed(UNSTEERED, Arm((standing.setting,)), draws)
            if not values:
                chosen, reason = standing.setting, ""
                break
            reason = reason or f"it harms {self.options.by} {' and '.join(values)} ({standing.setting})"
        effect = self.effect(Arm((chosen,)), self.confirming, "validation")
        lift = effect.lift
        if not reason and lift.low95 <= 0:
            reason = (
                f"no certain lift on {lift.problems} validation problems: best {lift.lift:+.3f} "
                f"[{lift.low95:+.3f}, {lift.high95:+.3f}] ({chosen})"
            )
        return replace(result, chosen=chosen, effect=effect, reason=reason)

    def drop_harmful(self, results: Sequence[GroupResult]) -> list[GroupResult]:
        """Drops, one after the other, the vector without which the others do better, or that harms a value."""
        results = list(results)
        while True:
            places = [place for place, one in enumerate(results) if one.kept]
            if len(places) < 2:
                return results
            worst, reason, least = -1, "", 0.0
            everything = Arm(tuple(one for place in places if (one := results[place].chosen) is not None))
            draws = self.confirming
            for place in places:
                others = Arm(tuple(one for one in everything.settings if one is not results[place].chosen))
                without, with_it = self.trials.measure([(others, draws), (everything, draws)], "together")
                gain = (sum(one.solved for one in with_it) - sum(one.solved for one in without)) / len(draws)
                values = self._harmed(others, everything, draws)
                if (gain < 0 or values) and (worst < 0 or gain < least):
                    worst, least = place, gain
                    harm = f", and harms {self.options.by} {' and '.join(values)}" if values else ""
                    reason = f"beside the others it changes success by {gain:+.3f}{harm}"
            if worst < 0:
                return results
            results[worst] = replace(results[worst], reason=reason)

    def _harmed(self, before: Arm, after: Arm, draws: Sequence[Draw]) -> list[str]:
        left, right = self.trials.measure([(before, draws), (after, draws)], "harm")
        return harmed(draws, left, right, self.bench.problems, self.options.by, self.bench.seed)

    def effect(self, arm: Arm, draws: Sequence[Draw], split: str) -> Effect:
        """What an arm does on draws, against the unsteered arm."""
        unsteered, steered = self.trials.measure([(UNSTEERED, draws), (arm, draws)], f"{split}: confirming")
        return effect_of(
            draws, unsteered, steered, self.bench.problems, self.options.by, split, self.bench.seed
        )
