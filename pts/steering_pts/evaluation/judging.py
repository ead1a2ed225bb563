"""Verdicts on the completions of an evaluation, each text judged once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from steering_pts.data import Problem
from steering_pts.evaluation.journal import Journal, key_of
from steering_pts.evaluation.samples import Sample
from steering_pts.oracles.base import Oracle, Verdict
from steering_pts.oracles.registry import judge_all, oracle_settings
from steering_pts.progress import RunProgress

_AT_ONCE: Final = 512
"""Completions judged between two steps of the progress display; an oracle may judge them at a time."""


def judge(
    oracle: Oracle,
    items: Sequence[tuple[Problem, Sample]],
    journal: Journal,
    progress: RunProgress,
) -> tuple[list[Verdict], int]:
    """The verdict on each completion, in order, and on how many of them the oracle failed.

    What was cut off is censored, and so is what the oracle failed on; a completion that steering broke is incorrect.
    Equal texts for the same problem are judged once. A failed judgement is not kept, so the same command tries again.
    """
    settings = sorted(oracle_settings(oracle).items())
    keys = [_key(settings, problem, sample) for problem, sample in items]
    open_ones: dict[str, tuple[Problem, Sample]] = {}
    for key, item in zip(keys, items, strict=True):
        if key is not None and key not in journal:
            open_ones.setdefault(key, item)
    failed: set[str] = set()
    asked = list(open_ones.items())
    with progress.phase("judging", len(asked)) as advance:
        for start in range(0, len(asked), _AT_ONCE):
            batch = asked[start : start + _AT_ONCE]
            judgements = judge_all(oracle, [(problem, sample.text, False) for _, (problem, sample) in batch])
            for (key, _), judgement in zip(batch, judgements, strict=True):
                if judgement.failed:
                    failed.add(key)
                else:
                    journal.put(key, {"verdict": judgement.verdict.value, "extracted": judgement.extracted})
                advance(0)
    verdicts = [_verdict(key, sample, journal, failed) for key, (_, sample) in zip(keys, items, strict=True)]
    return verdicts, sum(key in failed for key in keys)


def _key(settings: object, problem: Problem, sample: Sample) -> str | None:
    """The key of a verdict; None where no oracle is needed."""
    if sample.broken or sample.truncated:
        return None
    fields = sorted(problem.fields.items())
    return key_of("verdict", settings, problem.question, problem.answer, fields, sample.text)


def _verdict(key: str | None, sample: Sample, journal: Journal, failed: set[str]) -> Verdict:
    if sample.broken:
        return Verdict.INCORRECT
    if key is None or key in failed:
        return Verdict.CENSORED
    return Verdict(journal.get(key)["verdict"])
