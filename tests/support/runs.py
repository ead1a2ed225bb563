"""Runs that were not searched but written: a real ledger with planted pivots, as many as a test wants."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from steering_pts.cli.run import RunFolder
from steering_pts.data import Problem
from steering_pts.ledger import (
    CompletionRecord,
    ConfirmationRecord,
    Ledger,
    NomineeRecord,
    PivotRecord,
    RolloutKey,
    RolloutRecord,
    ScoreRecord,
)
from steering_pts.ledger.records import AlternativeCount
from steering_pts.oracles.base import Verdict
from steering_pts.settings import SamplerSettings, SearchSettings, as_json

HOSTILE = "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'> & \"'\u202e\x00"
"""A text that a page must show and not run."""

_ROLLOUTS = 20


def settings_of(model: Path) -> dict[str, Any]:
    """The settings of a run on a model folder."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    definition = tokenizer.backend_tokenizer.to_str()
    return {
        "model": str(model),
        "tokenizer_digest": hashlib.sha256(definition.encode()).hexdigest(),
        "seed": 0,
        **as_json(sampler=SamplerSettings(), search=SearchSettings()),
    }


VALUES = (0.4, 0.6, 1.0)
"""P(success) of a planted completion that succeeds: before its first pivot, between both, and after the second.

Each of its two tokens has probability 1/2, and an alternative succeeds in 1 of 5 rollouts, so V_before =
V_after / 2 + 1/10. One that fails is the mirror image.
"""


def planted_run(
    folder: Path,
    model: Path,
    pivots: int,
    *,
    text: str = "Plan: ",
    length: int = 60,
    bare: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> RunFolder:
    """A finished run of completions with two pivots each (the last may have one); see `VALUES`.

    Args:
        folder: Where it goes.
        model: A model folder with a byte-level tokenizer.
        pivots: How many in all.
        text: What each completion begins with.
        length: Tokens of a completion, more than those of `text` and 20.
        bare: Completions without a pivot besides.
        settings: The run's settings; `settings_of` the model where they are not given.
    """
    run = RunFolder(folder)
    tokenizer = AutoTokenizer.from_pretrained(model)
    start = tokenizer(text, add_special_tokens=False)["input_ids"]
    owns: list[tuple[CompletionRecord, list[int]]] = []
    for number in range((pivots + 1) // 2 + bare):
        count = max(min(pivots - 2 * number, 2), 0)
        ids = (*start, *[50 + number % 20] * (length - len(start)))
        owns.append((_completion(number, ids), [len(start), len(start) + 19][:count]))
    confirmed = [_confirmation(own, place) for own, places in owns for place in places]
    by_id = {own.id: own for own, _ in owns}
    with Ledger.open(run.ledger, settings or settings_of(model)) as ledger:
        ledger.add_problems([Problem(own.problem_id, f"{HOSTILE} {own.index}", "42") for own, _ in owns])
        ledger.add_completions([own for own, _ in owns])
        ledger.add_scores([_score(own, places) for own, places in owns])
        ledger.add_rollouts(
            [one for own, places in owns for place in places for one in _rollouts(own, place)]
        )
        ledger.add_nominees([_nominee(own, place) for own, places in owns for place in places])
        ledger.add_confirmations(confirmed)
        ledger.write_pivots([_pivot(by_id[one.completion_id], one) for one in confirmed])
        ledger.export_pivots_jsonl(run.pivots, lambda ids: str(tokenizer.decode(list(ids))))
    return run


def _completion(number: int, ids: tuple[int, ...]) -> CompletionRecord:
    name = f"p{number:04}"
    verdict = Verdict.INCORRECT if number % 2 else Verdict.CORRECT
    return CompletionRecord(f"{name}-0", name, 0, number, (5, 6), ids, verdict, HOSTILE, "eos")


def _score(own: CompletionRecord, places: list[int]) -> ScoreRecord:
    return ScoreRecord(own.id, tuple(0.5 if place in places else 1.0 for place in range(len(own.ids))))


def _other(own: CompletionRecord, place: int) -> tuple[int, ...]:
    return (own.ids[place] + 1,)


def _rollouts(own: CompletionRecord, place: int) -> list[RolloutRecord]:
    """Alternatives at a place: four of five end unlike the completion."""
    unlike = Verdict.INCORRECT if own.verdict is Verdict.CORRECT else Verdict.CORRECT
    return [
        RolloutRecord(
            key=RolloutKey(own.id, place, "alternative", "explore", index),
            seed=index,
            ids=_other(own, place),
            verdict=unlike if index % 5 else own.verdict,
            extracted=None,
            tokens=1,
        )
        for index in range(_ROLLOUTS)
    ]


def _sign(own: CompletionRecord) -> int:
    return 1 if own.verdict is Verdict.CORRECT else -1


def _nominee(own: CompletionRecord, place: int) -> NomineeRecord:
    return NomineeRecord(own.id, place, _sign(own), 0.9, 0.3 * _sign(own), (4, 16, 0), 12, 12)


def _confirmation(own: CompletionRecord, place: int) -> ConfirmationRecord:
    delta = 0.3 * _sign(own)
    return ConfirmationRecord(
        own.id, place, 6, 12, 0, 6, 12, 0, 0.5, 1e-4, delta, round(delta - 0.1, 9), round(delta + 0.1, 9)
    )


def _pivot(own: CompletionRecord, confirmed: ConfirmationRecord) -> PivotRecord:
    place = confirmed.position
    ids, other = own.ids[place : place + 1], _other(own, place)
    helps = confirmed.delta > 0
    return PivotRecord(
        completion_id=own.id,
        problem_id=own.problem_id,
        position=place,
        ids=ids,
        probability=0.5,
        delta=confirmed.delta,
        low=confirmed.low,
        high=confirmed.high,
        p_value=confirmed.p_value,
        q_value=2 * confirmed.p_value,
        chosen_ids=ids if helps else other,
        rejected_ids=other if helps else ids,
        alternatives=(AlternativeCount(other, 4, 16) if helps else AlternativeCount(other, 16, 4),),
    )
