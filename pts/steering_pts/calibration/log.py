"""The log of a calibration: append-only JSON lines, of which a kill costs at most the last one.

The first line names what was measured (model, problems, sampler, seed, oracle). Each further line holds the outcomes of
one arm on some draws, whole: an arm's line is there or it is not, so a continued calibration measures the same batches
as one that was never interrupted, and comes to the same numbers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from steering_pts.errors import VectorsError
from steering_pts.ledger.export import write_atomically
from steering_pts.ledger.lock import WriterLock
from steering_pts.settings import JsonValue

SCHEMA: Final = "steering.calibration-log/1"


class Draw(NamedTuple):
    """One completion that every arm is given alike: a problem, and the number of the sample."""

    problem_id: str
    sample: int


class Outcome(NamedTuple):
    """What an arm came to on a draw.

    Attributes:
        solved: Whether the completion was judged correct; what was cut off was not.
        kl: Divergence from the unsteered model in nats, summed over the counted steps; infinite where steering broke
            the logits.
        steps: How many steps were counted: those not steered, or all of an arm that acts at every step.
        steered: Steps at which a rule acted.
    """

    solved: bool
    kl: float = 0.0
    steps: int = 0
    steered: int = 0


class CalibrationLog:
    """The outcomes of all arms so far, in memory and in a file.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path, settings: Mapping[str, JsonValue], *, restart: bool = False) -> None:
        """Opens or begins a log; `restart` forgets what there is.

        Raises:
            VectorsError: The file can't be read or written, is damaged, or was begun with other settings.
            LedgerLockedError: Another process is writing to it.
        """
        self.path = path
        self._lock = WriterLock(path)
        try:
            self._outcomes: dict[str, dict[Draw, Outcome]] = {}
            self._ids: dict[Draw, tuple[int, ...]] = {}
            self._made: set[tuple[str, Draw]] = set()
            header = {"schema": SCHEMA, **settings}
            if restart or not path.exists():
                write_atomically(path, [json.dumps(header, sort_keys=True)])
            self._read(header)
        except BaseException:
            self._lock.release()
            raise

    def outcomes(self, arm: str) -> dict[Draw, Outcome]:
        """What is known of an arm."""
        return self._outcomes.setdefault(arm, {})

    @property
    def unsteered_ids(self) -> dict[Draw, tuple[int, ...]]:
        """The generated ids of unsteered completions."""
        return self._ids

    def was_made(self, arm: str, draw: Draw) -> bool:
        """Whether the arm's completion of a draw was made for it, and not taken over from another arm."""
        return (arm, draw) in self._made

    def add(
        self,
        arm: str,
        draws: Sequence[Draw],
        outcomes: Sequence[Outcome],
        ids: Sequence[tuple[int, ...]] | None = None,
        also: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Keeps the outcomes of an arm; they are on the disk after `flush`.

        Args:
            arm: Its key.
            draws: What it was measured on.
            outcomes: Of each draw.
            ids: The generated ids of unsteered completions.
            also: By the key of another arm, places in `draws` where its completion is the same.
        """
        line: dict[str, Any] = {
            "arm": arm,
            "draws": [list(draw) for draw in draws],
            # JSON has no infinity.
            "outcomes": [
                [int(o.solved), None if o.kl == float("inf") else o.kl, o.steps, o.steered] for o in outcomes
            ],
        }
        if ids is not None:
            line["ids"] = [list(one) for one in ids]
        if also:
            line["also"] = {key: list(places) for key, places in also.items() if places}
        self._file.write(json.dumps(line) + "\n")
        self._keep(line)

    def flush(self) -> None:
        """Puts what was added on the disk.

        Raises:
            VectorsError: It can't be written.
        """
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise VectorsError(f"{self.path} can't be written: {error.strerror}") from error

    def close(self) -> None:
        """Closes the file and lets others write to it."""
        try:
            self._file.close()
        finally:
            self._lock.release()

    def _read(self, header: Mapping[str, JsonValue]) -> None:
        try:
            data = self.path.read_bytes()
            # What follows the last end of a line was cut off by a kill.
            whole = data.rfind(b"\n") + 1
            lines = data[:whole].decode().split("\n")[:-1]
        except OSError as error:
            raise VectorsError(f"{self.path} can't be read: {error.strerror}") from error
        except UnicodeDecodeError:
            raise VectorsError(f"{self.path} is damaged: it is not UTF-8; remove it to begin anew") from None
        for number, text in enumerate(lines, start=1):
            try:
                line = json.loads(text)
                if number == 1:
                    self._compare(line, header)
                else:
                    self._keep(line)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                raise VectorsError(
                    f"{self.path} is damaged: line {number} is no line of a calibration log; remove it to begin anew"
                ) from None
        if not lines:
            raise VectorsError(f"{self.path} is damaged: it is empty; remove it to begin anew")
        try:
            if whole < len(data):
                os.truncate(self.path, whole)
            self._file = self.path.open("a", encoding="utf-8", newline="\n")
        except OSError as error:
            raise VectorsError(f"{self.path} can't be written: {error.strerror}") from error

    def _compare(self, found: Mapping[str, JsonValue], expected: Mapping[str, JsonValue]) -> None:
        if found.get("schema") != SCHEMA:
            raise ValueError
        differences = [
            f"{name} was {found.get(name)!r}, now {expected.get(name)!r}"
            for name in sorted(found.keys() | expected.keys())
            if found.get(name) != expected.get(name)
        ]
        if differences:
            raise VectorsError(
                f"{self.path} was begun with other settings: {'; '.join(differences)}. "
                "Use the same to continue it, or --restart to begin anew"
            )

    def _keep(self, line: Mapping[str, Any]) -> None:
        draws = [Draw(str(problem), int(sample)) for problem, sample in line["draws"]]
        outcomes = [
            Outcome(bool(solved), float("inf") if kl is None else float(kl), int(steps), int(steered))
            for solved, kl, steps, steered in line["outcomes"]
        ]
        self.outcomes(line["arm"]).update(zip(draws, outcomes, strict=True))
        self._made.update((line["arm"], draw) for draw in draws)
        for key, places in line.get("also", {}).items():
            for place in places:
                self.outcomes(key).setdefault(draws[place], outcomes[place])
        if "ids" in line:
            self._ids.update(zip(draws, map(tuple, line["ids"]), strict=True))
