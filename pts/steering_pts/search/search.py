"""The search over all completions of a run: explore, nominate, confirm.

Rounds are of the whole run, and everything that decides them is sorted by completion and position. So the same
outcomes lead to the same questions, in whatever order they were found out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from steering_pts.ledger.records import Arm, ConfirmationRecord, NomineeRecord, RolloutKey
from steering_pts.search.confirmation import CONFIRM, Counts, confirmation, sizes
from steering_pts.search.exploration import EXPLORE, Exploration
from steering_pts.search.trace import Outcome, Trace
from steering_pts.settings import SearchSettings

_DONE = "done"


class Search:
    """Searches completions: call `asks`, answer with `tell`, until nothing is asked for any more.

    Attributes:
        nominees: Candidates that were nominated, once exploration has ended, by completion and position.
        confirmations: Results of the fresh rollouts, once the search has ended, in the same order.
    """

    def __init__(self, traces: Sequence[Trace], settings: SearchSettings) -> None:
        self.nominees: list[NomineeRecord] = []
        self.confirmations: list[ConfirmationRecord] = []
        self._settings = settings
        self._traces = {trace.completion_id: trace for trace in sorted(traces, key=lambda t: t.completion_id)}
        self._exploration = Exploration(list(self._traces.values()), settings)
        self._stage = EXPLORE
        self._waiting: list[RolloutKey] | None = None

    @property
    def done(self) -> bool:
        """Whether nothing is left to ask for."""
        return self._stage == _DONE

    @property
    def wanted(self) -> int:
        """Rollouts that the stage may ask for in all."""
        if self._stage == CONFIRM:
            return _fresh(self.nominees)
        return self._exploration.pool

    @property
    def stage(self) -> str:
        """`explore`, `confirm` or `done`."""
        return self._stage

    def asks(self) -> list[RolloutKey]:
        """The rollouts that are needed next; none when the search has ended. Asking again asks for the same."""
        if self._waiting is None:
            self._waiting = self._next()
        return list(self._waiting)

    def tell(self, outcomes: Mapping[RolloutKey, Outcome]) -> None:
        """Takes the outcomes of everything that `asks` returned.

        Raises:
            ValueError: Outcomes of other rollouts, or not of all of them.
        """
        if set(outcomes) != set(self._waiting or ()):
            raise ValueError("the outcomes must be those of the rollouts that were asked for")
        ordered = {key: outcomes[key] for key in sorted(outcomes)}
        self._waiting = None
        if self._stage == CONFIRM:
            self._confirm(ordered)
            self._stage = _DONE
        else:
            self._exploration.tell(ordered)

    def _next(self) -> list[RolloutKey]:
        if self._stage == EXPLORE:
            if asks := self._exploration.asks():
                return asks
            self._nominate()
            self._stage = CONFIRM if _fresh(self.nominees) else _DONE
        if self._stage == CONFIRM:
            return [key for nominee in self.nominees for key in _fresh_rollouts(nominee)]
        return []

    def _nominate(self) -> None:
        settings = self._settings
        for completion_id, own in self._exploration.explored.items():
            if not own.searched.any():
                continue
            posterior = own.chain.posterior()
            own.chain.release()
            for index in np.flatnonzero((posterior.pivotal >= settings.nominate) & own.searched):
                step = own.chain.candidates[index]
                position = own.positions[index]
                on_path, alternative = sizes(own.trace, position, posterior, int(index), settings)
                self.nominees.append(
                    NomineeRecord(
                        completion_id=completion_id,
                        position=position,
                        sign=1 if posterior.positive[index] >= posterior.negative[index] else -1,
                        # Rounded: what is recorded must not hang on the last bit of a sum.
                        posterior=round(float(posterior.pivotal[index]), 9),
                        effect=round(float(posterior.effect[index]), 9),
                        explored=tuple(map(int, own.chain.draws[step])),  # type: ignore[arg-type]  # three counts
                        on_path=on_path,
                        alternative=alternative,
                    )
                )
        self._fit_to_budget()

    def _fit_to_budget(self) -> None:
        """Where all fresh rollouts would exceed the budget: fewer for every nominee, then none for the least certain.

        It rests on the exploration alone, so the test holds for those that are left.
        """
        left = self._exploration.budget - self._exploration.used
        least = self._settings.confirm_least

        def resized(share: float) -> list[NomineeRecord]:
            return [
                nominee.resized(
                    *(max(min(least, n), int(share * n)) for n in (nominee.on_path, nominee.alternative))
                )
                for nominee in self.nominees
            ]

        for hundredths in range(100, -1, -1):
            fitted = resized(hundredths / 100)
            if _fresh(fitted) <= left:
                break
        self.nominees = fitted
        for index in sorted(range(len(self.nominees)), key=lambda index: -self.nominees[index].posterior):
            left -= _fresh([self.nominees[index]])
            if left < 0:
                self.nominees[index] = self.nominees[index].resized(0, 0)

    def _confirm(self, outcomes: Mapping[RolloutKey, Outcome]) -> None:
        counts: dict[tuple[str, int, Arm], Counts] = {}
        for key, outcome in outcomes.items():
            counts.setdefault((key.completion_id, key.position, key.arm), Counts()).add(outcome.verdict)
        for nominee in self.nominees:
            if not nominee.alternative:  # the budget had nothing left for it
                continue
            place = nominee.completion_id, nominee.position
            # All others are part of the correction's family, those whose rollouts were all censored too.
            self.confirmations.append(
                confirmation(
                    self._traces[nominee.completion_id],
                    nominee,
                    counts.get((*place, "on_path"), Counts()),
                    counts.get((*place, "alternative"), Counts()),
                    self._settings,
                )
            )


def _fresh(nominees: Sequence[NomineeRecord]) -> int:
    return sum(nominee.on_path + nominee.alternative for nominee in nominees)


def _fresh_rollouts(nominee: NomineeRecord) -> list[RolloutKey]:
    arms: tuple[tuple[Arm, int], ...] = (("on_path", nominee.on_path), ("alternative", nominee.alternative))
    return [
        RolloutKey(nominee.completion_id, nominee.position, arm, CONFIRM, index)
        for arm, count in arms
        for index in range(count)
    ]
