"""A run made of another program's pivotal tokens: what works on a run works on it too.

Nothing in it was verified here, and it says so: each pivot has p = q = 1, the interval from -1 to 1, and no
confirmation; completions end with the token and are censored; the setting `imported` names the source.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from steering_engine.loading import LoadedModel, weights_digest
from steering_engine.prompts import prompt_ids
from steering_pts.data import Problem
from steering_pts.data.problem import problem_id
from steering_pts.errors import InteropError
from steering_pts.interop.codelion.reading import Decision
from steering_pts.interop.mending import Mending
from steering_pts.interop.recovery import RecoveredDecision, Recovery
from steering_pts.interop.told_rates import ToldRates, field_of
from steering_pts.ledger import CompletionRecord, Ledger, PivotRecord, ScoreRecord
from steering_pts.oracles.base import Oracle, Verdict
from steering_pts.oracles.registry import oracle_settings
from steering_pts.prompts import question_prompt
from steering_pts.scoring import score_completions
from steering_pts.settings import JsonValue, SamplerSettings, SearchSettings, Unit, as_json
from steering_spec import InvalidRequestError

_ROWS_PER_FORWARD = 4096


@dataclass(frozen=True, slots=True)
class ImportedDecisions:
    """Decisions whose ids were recovered, with the counterpart of each, and how their questions were put.

    Attributes:
        decisions: In the order of their rows.
        prompt_tokens: How many ids of each context are the prompt.
        raw: Whether the questions were given as they are, not through the chat template.
    """

    decisions: tuple[RecoveredDecision, ...]
    prompt_tokens: tuple[int, ...]
    raw: bool


def recover_all(
    source: str, loaded: LoadedModel, decisions: Sequence[Decision], mending: Mending, *, skip: bool
) -> ImportedDecisions:
    """The ids of all decisions; a missing counterpart is the model's most probable other token.

    Args:
        source: The file, for messages.
        loaded: The model whose tokens they are.
        decisions: What the file holds.
        mending: Hears of everything that was mended.
        skip: Leave out what can't be recovered, as long as something is left.

    Raises:
        InteropError: Ids can't be recovered; the error holds every row with the reason.
    """
    recovery = Recovery(loaded.tokenizer, loaded.vocab_size)
    recovered: list[RecoveredDecision] = []
    faults: list[tuple[int, str]] = []
    for decision in decisions:
        found = recovery.decision(decision, mending)
        if isinstance(found, str):
            faults.append((decision.number, found))
        elif len(found.context_ids) >= loaded.context_tokens:
            faults.append((decision.number, f"its context has {len(found.context_ids)} tokens, too many"))
        else:
            recovered.append(found)
    if faults and not (skip and recovered):
        raise InteropError(source, [f"row {number}: {fault}" for number, fault in faults])
    for number, fault in faults:
        mending.note(f"left out: {fault}", number)
    whole = _with_counterparts(loaded, recovered, mending)
    raw, lengths = _prompt_tokens(loaded, whole, mending)
    return ImportedDecisions(tuple(whole), tuple(lengths), raw)


def write_run(
    ledger_path: Path,
    loaded: LoadedModel,
    model: str,
    imported: ImportedDecisions,
    oracle: Oracle,
    sampler: SamplerSettings,
    origin: str,
) -> Ledger:
    """Writes the ledger of a run that holds these decisions as pivots, and returns it, open.

    Args:
        ledger_path: The file; one that an interrupted import of the same began is finished.
        loaded: The model.
        model: What the model was named by: `demo`, a folder, or a hub id.
        imported: The decisions.
        oracle: What judges completions of this run later; its questions have no answers.
        sampler: How completions are drawn later, and by which probabilities of tokens are computed.
        origin: What was imported, written into the run's settings.

    Raises:
        LedgerError: There is another run, or it can't be written.
    """
    problems: dict[str, Problem] = {}
    rates: dict[str, dict[str, ToldRates]] = defaultdict(dict)
    completions: list[CompletionRecord] = []
    counts: Counter[str] = Counter()
    for found, prompt in zip(imported.decisions, imported.prompt_tokens, strict=True):
        question = found.decision.query or found.decision.context
        problem = Problem(problem_id(question, ""), question, "", {"task_type": found.decision.task_type})
        problems.setdefault(problem.id, problem)
        rates[problem.id].setdefault(_completion_id(found), found.decision.rates)
        ids = (*found.context_ids[prompt:], *found.taken_ids)
        completions.append(
            CompletionRecord(
                id=_completion_id(found),
                problem_id=problem.id,
                index=counts[problem.id],
                seed=0,
                prompt_ids=found.context_ids[:prompt],
                ids=ids,
                verdict=Verdict.CENSORED,
                extracted=None,
                finish_reason="length",
            )
        )
        counts[problem.id] += 1
    scores = score_completions(loaded, [(one.prompt_ids, one.ids) for one in completions], sampler)
    unit: Unit = "token" if all(len(found.taken_ids) == 1 for found in imported.decisions) else "sentence"
    settings: dict[str, JsonValue] = {
        "model": model,
        "model_config_digest": loaded.config_digest,
        "tokenizer_digest": loaded.tokenizer_digest,
        "weights_digest": weights_digest(loaded.model),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "problems_digest": hashlib.sha256(" ".join(problems).encode()).hexdigest(),
        **oracle_settings(oracle),
        "seed": 0,
        "raw": imported.raw,
        "imported": origin,
        **as_json(sampler=sampler, search=SearchSettings(unit=unit)),
    }
    ledger = Ledger.open(ledger_path, settings)
    try:
        ledger.add_problems(
            [
                replace(problem, fields={**problem.fields, **field_of(rates[problem.id])})
                for problem in problems.values()
            ]
        )
        ledger.add_completions(completions)
        ledger.add_scores([ScoreRecord(c.id, p) for c, p in zip(completions, scores, strict=True)])
        ledger.write_pivots(
            [
                _pivot(found, completion, probabilities)
                for found, completion, probabilities in zip(
                    imported.decisions, completions, scores, strict=True
                )
            ]
        )
    except BaseException:
        ledger.close()
        raise
    return ledger


def _completion_id(found: RecoveredDecision) -> str:
    identity = json.dumps([found.context_ids, found.taken_ids, found.other_ids])
    return f"imported-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def _pivot(
    found: RecoveredDecision, completion: CompletionRecord, probabilities: Sequence[float]
) -> PivotRecord:
    position = len(completion.ids) - len(found.taken_ids)
    taken, other = found.taken_ids, found.other_ids
    chosen, rejected = (taken, other) if found.decision.delta > 0 else (other, taken)
    probability = 1.0
    for one in probabilities[position:]:
        probability *= one
    return PivotRecord(
        completion_id=completion.id,
        problem_id=completion.problem_id,
        position=position,
        ids=taken,
        probability=probability,
        delta=found.decision.delta,
        low=-1.0,
        high=1.0,
        p_value=1.0,
        q_value=1.0,
        chosen_ids=chosen,
        rejected_ids=rejected,
        alternatives=(),
    )


def _with_counterparts(
    loaded: LoadedModel, recovered: Sequence[RecoveredDecision], mending: Mending
) -> list[RecoveredDecision]:
    lacking = [found for found in recovered if not found.other_ids]
    others = dict(zip(map(id, lacking), _most_probable_others(loaded, lacking), strict=True))
    mending.note_all(
        "no other token was given; the model's most probable one stands in, unverified",
        (found.decision.number for found in lacking),
    )
    return [
        RecoveredDecision(f.decision, f.context_ids, f.taken_ids, (others[id(f)],), f.prompt_tokens)
        if id(f) in others
        else f
        for f in recovered
    ]


@torch.inference_mode()
def _most_probable_others(loaded: LoadedModel, decisions: Sequence[RecoveredDecision]) -> list[int]:
    """For each decision, the id with the largest logit after its context among all but the one taken."""
    found = [0] * len(decisions)
    by_length: dict[int, list[int]] = {}
    for index, decision in enumerate(decisions):
        by_length.setdefault(len(decision.context_ids), []).append(index)
    for length, indices in by_length.items():
        size = max(1, _ROWS_PER_FORWARD // length)
        for start in range(0, len(indices), size):
            batch = indices[start : start + size]
            ids = torch.tensor([decisions[i].context_ids for i in batch], device=loaded.device)
            logits = loaded.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1].float()
            taken = torch.tensor([decisions[i].taken_ids[0] for i in batch], device=loaded.device)
            logits.scatter_(1, taken[:, None], -torch.inf)
            for index, best in zip(batch, logits.argmax(-1).tolist(), strict=True):
                found[index] = best
    return found


def _prompt_tokens(
    loaded: LoadedModel, decisions: Sequence[RecoveredDecision], mending: Mending
) -> tuple[bool, list[int]]:
    """Whether questions are raw, and how many ids of each context are its prompt.

    A context that begins with neither form of its question is taken as a prompt as a whole: the decision is then the
    first token of the completion, and all else holds.
    """
    votes: Counter[bool] = Counter()
    lengths = []
    encode = _Prompts(loaded)
    for found in decisions:
        if found.prompt_tokens is not None:
            lengths.append(found.prompt_tokens)
            continue
        for raw in (False, True):
            prompt = encode(found.decision.query, raw=raw)
            if prompt and found.context_ids[: len(prompt)] == prompt:
                votes[raw] += 1
                lengths.append(len(prompt))
                break
        else:
            mending.note(
                "the context does not begin with the question; all of it counts as the prompt",
                found.decision.number,
            )
            lengths.append(len(found.context_ids))
    return votes[True] > votes[False] or loaded.tokenizer.chat_template is None, lengths


class _Prompts:
    """The ids of questions, each computed once; empty where there is no question or no chat template."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._known: dict[tuple[str, bool], tuple[int, ...]] = {}

    def __call__(self, question: str, *, raw: bool) -> tuple[int, ...]:
        key = question, raw
        if key not in self._known:
            self._known[key] = self._encode(question, raw=raw)
        return self._known[key]

    def _encode(self, question: str, *, raw: bool) -> tuple[int, ...]:
        if not question or (not raw and self._loaded.tokenizer.chat_template is None):
            return ()
        try:
            return prompt_ids(self._loaded.tokenizer, question_prompt(Problem("", question, ""), raw=raw))
        except InvalidRequestError:
            return ()
