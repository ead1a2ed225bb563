"""The oracle for programs that must pass tests."""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Final, Literal

from pydantic import Field

from steering_pts.data import Problem
from steering_pts.errors import OracleError
from steering_pts.oracles.base import AnswerWatcher, Judgement, Oracle, Verdict
from steering_pts.oracles.options import Seconds
from steering_pts.oracles.python.extraction import ProgramWatcher, extract_program
from steering_pts.oracles.python.inside.testing import Suite
from steering_pts.oracles.python.problem_tests import problem_tests
from steering_pts.oracles.python.sandbox import Sandbox, SandboxError, SandboxLimits, SandboxResult
from steering_pts.oracles.python.trial import TRIAL_PROGRAM, TRIAL_SUITE, trial_faults
from steering_pts.settings import JsonValue

CACHED_PROGRAMS: Final = 65_536
MAX_CHARACTERS: Final = 200_000  # of a program; the compiler needs about a kilobyte for each

_MEBIBYTE: Final = 1024 * 1024
_TIMES: Final = frozenset({"time", "processor time"})

Megabytes = Annotated[int, Field(ge=1, le=1 << 20)]


class PythonOracle(Oracle):
    """Right is a program that passes the problem's tests; docs/python-oracle.md says how it is kept from harm.

    Incorrect: an assertion fails, anything raises, the program can't be compiled, ends before the tests do, or takes
    more memory, file space or threads than it may: all of them say something about the program alone. What takes more
    time says something about the machine too; it is censored, or incorrect where `timeout` says so. Tests that can't be
    run, and a sandbox that fails, are failures of the oracle.

    Programs run `workers` at a time, in as many threads as call `judge`, or by `judge_many`. Equal programs for the
    same tests run once, unless they ran out of time.
    """

    name = "python"

    def __init__(
        self,
        seconds: Seconds = 5.0,
        memory_mb: Annotated[int, Field(ge=64, le=1 << 20)] = 1024,
        threads: Annotated[int, Field(ge=1, le=10_000)] = 16,
        file_mb: Megabytes = 16,
        timeout: Literal["censored", "incorrect"] = "censored",
        workers: Annotated[int, Field(ge=0, le=1024)] = 0,
        unsafe: bool = False,
    ) -> None:
        """Runs a trial program, so that what the sandbox lacks is known before any work.

        Args:
            seconds: Processor time of a program, rounded up to whole seconds; it may take twice as long by the clock.
            memory_mb: MiB of address space, the interpreter's 20 included.
            threads: Threads at a time. New processes are refused in any case.
            file_mb: MiB that a program may have in files, or write to them.
            timeout: The verdict on a program that takes longer.
            workers: How many programs run at a time; 0: as many as there are processor cores.
            unsafe: Run without the layers of protection that this machine does not offer.

        Raises:
            OracleError: This is not Linux, or a layer of protection is missing; the message names all of them.
        """
        self._options: Mapping[str, JsonValue] = {
            "seconds": seconds,
            "memory_mb": memory_mb,
            "threads": threads,
            "file_mb": file_mb,
            "timeout": timeout,
            "workers": workers,
            "unsafe": unsafe,
        }
        self._timeout = Verdict(timeout)
        self._workers = workers or len(os.sched_getaffinity(0))
        self._cache: OrderedDict[tuple[Suite, str], tuple[Verdict, str]] = OrderedDict()
        self._lock = threading.Lock()
        limits = SandboxLimits(
            cpu_seconds=math.ceil(seconds),
            wall_seconds=2 * seconds,
            memory_bytes=memory_mb * _MEBIBYTE,
            file_bytes=file_mb * _MEBIBYTE,
            threads=threads,
        )
        self._sandbox = Sandbox(limits, self._workers, unsafe=unsafe)
        try:
            self._try_out(unsafe)
        except BaseException:
            self.close()
            raise

    @property
    def options(self) -> Mapping[str, JsonValue]:
        """As given."""
        return self._options

    def judge(self, problem: Problem, completion: str) -> Judgement:
        """The verdict on a completion that was not cut off.

        Raises:
            OracleError: The problem has no tests.
        """
        tests = problem_tests(problem)
        program = extract_program(completion, tests)
        if program is None:
            return Judgement(Verdict.INCORRECT, None, "the completion gives no program")
        if len(program) > MAX_CHARACTERS:
            return Judgement(Verdict.INCORRECT, program[:MAX_CHARACTERS], "too long to be a program")
        key = (tests.suite, program)
        with self._lock:
            known = self._cache.get(key)
        if known is not None:
            return Judgement(known[0], program, known[1])
        try:
            result = self._sandbox.run(program, tests.suite)
        except SandboxError as error:
            return Judgement.failure(str(error), program)
        return self._judgement(key, result)

    def judge_many(self, items: Sequence[tuple[Problem, str]]) -> list[Judgement]:
        """A judgement for each (problem, completion), in order, several at a time; raises nothing."""
        with ThreadPoolExecutor(self._workers, "python-oracle") as pool:
            return list(pool.map(lambda item: self.attempt(*item), items))

    def misfit(self, problem: Problem) -> str | None:
        """Why no completion of this problem can be judged: it has no tests."""
        try:
            problem_tests(problem)
        except OracleError as error:
            return str(error)
        return None

    def watcher(self, problem: Problem) -> AnswerWatcher:
        """True once a closed block defines all that the tests ask for: the first one that does decides."""
        return ProgramWatcher(problem_tests(problem))

    def close(self) -> None:
        """Ends the processes and removes their folders."""
        self._sandbox.close()

    def _judgement(self, key: tuple[Suite, str], result: SandboxResult) -> Judgement:
        program, limit, report = key[1], result.outcome.limit, result.report
        # Tests that passed have passed, though the program went on doing something until it was ended.
        if report is not None and report.outcome == "passed":
            return self._keep(key, Verdict.CORRECT, report.explanation)
        if limit is not None:
            return self._over(key, limit)
        if report is None:
            return Judgement.failure(f"the tests ended without a report{_last_line(result)}", program)
        if report.outcome == "unusable":
            return Judgement.failure(report.explanation, program)
        explanation = report.explanation
        if explanation.startswith("the program ended"):
            explanation += f" (exit code {result.outcome.exit}){_last_line(result)}"
        return self._keep(key, Verdict.INCORRECT, explanation)

    def _over(self, key: tuple[Suite, str], limit: str) -> Judgement:
        explanation = f"it took more {limit} than its limit"
        if limit not in _TIMES:
            return self._keep(key, Verdict.INCORRECT, explanation)
        # Not kept: on a machine less busy it may be otherwise.
        if self._timeout is Verdict.CENSORED:
            return Judgement.failure(explanation, key[1])
        return Judgement(Verdict.INCORRECT, key[1], explanation)

    def _keep(self, key: tuple[Suite, str], verdict: Verdict, explanation: str) -> Judgement:
        with self._lock:
            self._cache[key] = (verdict, explanation)
            if len(self._cache) > CACHED_PROGRAMS:
                self._cache.popitem(last=False)
        return Judgement(verdict, key[1], explanation)

    def _try_out(self, unsafe: bool) -> None:
        try:
            result = self._sandbox.run(TRIAL_PROGRAM, TRIAL_SUITE)
        except SandboxError as error:
            raise OracleError(_refusal([str(error)])) from error
        faults = trial_faults(result, unsafe=unsafe)
        if faults:
            raise OracleError(_refusal(faults))


def _refusal(faults: Sequence[str]) -> str:
    return (
        f"the python oracle can't keep programs from doing harm here: {'; '.join(faults)}. It needs Linux with seccomp "
        "and Landlock (5.13 or later, enabled). unsafe=yes runs programs with what there is; use it only where nothing "
        "can be harmed, such as a virtual machine of its own."
    )


def _last_line(result: SandboxResult) -> str:
    lines = result.outcome.output.strip().splitlines()
    return f": {lines[-1][:300]}" if lines else ""
