"""The part of admission that judges sampling: how tokens are chosen, and how many."""

from __future__ import annotations

from collections.abc import Iterator

from steering_spec import limits
from steering_spec.facts import ModelFacts
from steering_spec.numbers import count_violations, range_violations, token_violations
from steering_spec.request import SamplingParams
from steering_spec.unicode import unicode_violations
from steering_spec.violation import Violation


def sampling_violations(
    sampling: SamplingParams, model: ModelFacts | None = None, prompt_length: int | None = None
) -> Iterator[Violation]:
    """What is wrong with how tokens are to be chosen; that they fit into the context is judged elsewhere."""
    yield from range_violations("sampling.temperature", sampling.temperature, 0, limits.MAX_TEMPERATURE)
    if not 0 < sampling.top_p <= 1:
        yield Violation("sampling.top_p", f"{sampling.top_p} is outside (0, 1]")
    yield from range_violations("sampling.min_p", sampling.min_p, 0, 1)
    if sampling.top_k is not None:
        yield from count_violations("sampling.top_k", sampling.top_k)
    if sampling.max_tokens is not None:
        yield from count_violations("sampling.max_token_count", sampling.max_tokens)
    yield from _min_token_violations(sampling, model, prompt_length)
    yield from _completion_violations(sampling)
    yield from _stop_violations(sampling.stop)
    yield from _penalty_violations(sampling)
    yield from _bias_violations(sampling.logit_bias, model)
    yield from _banned_id_violations(sampling.banned_first_ids, model)
    yield from count_violations(
        "sampling.top_logprob_count", sampling.top_logprobs, least=0, most=limits.MAX_TOP_LOGPROBS
    )


def _min_token_violations(
    sampling: SamplingParams, model: ModelFacts | None, prompt_length: int | None
) -> Iterator[Violation]:
    field, least = "sampling.min_token_count", sampling.min_tokens
    if not 0 <= least <= limits.INT32_MAX:
        yield from count_violations(field, least, least=0)
        return
    most = sampling.max_tokens
    if most is None and model is not None:
        room = model.max_context_tokens - (prompt_length or 0)
        most = min(model.default_max_tokens, room)
    if most is not None and 1 <= most < least:
        yield Violation(field, f"{least} tokens can't be reached: at most {most} are generated")


def _completion_violations(sampling: SamplingParams) -> Iterator[Violation]:
    count = sampling.n
    yield from count_violations("sampling.completion_count", count, most=limits.MAX_COMPLETIONS)
    if sampling.seed is None:
        return
    if not -(2**63) <= sampling.seed < 2**63:
        yield Violation("sampling.seed", "outside the range of a signed 64-bit integer")
    elif 1 <= count <= limits.MAX_COMPLETIONS and sampling.seed + count > 2**63:
        yield Violation(
            "sampling.seed",
            f"completion {count - 1} would draw with {sampling.seed} + {count - 1}, "
            f"outside the range of a signed 64-bit integer; at most {2**63 - count} is right",
        )


def _stop_violations(texts: tuple[str, ...]) -> Iterator[Violation]:
    if len(texts) > limits.MAX_STOP_SEQUENCES:
        yield Violation("sampling.stop_sequences", f"more than {limits.MAX_STOP_SEQUENCES} stop sequences")
    for index, text in enumerate(texts[: limits.MAX_STOP_SEQUENCES]):
        yield from unicode_violations(f"sampling.stop_sequences[{index}]", text)
        if not 1 <= len(text) <= limits.MAX_STOP_SEQUENCE_CHARACTERS:
            yield Violation(
                f"sampling.stop_sequences[{index}]",
                f"{len(text)} characters; expected 1 to {limits.MAX_STOP_SEQUENCE_CHARACTERS}",
            )


def _penalty_violations(sampling: SamplingParams) -> Iterator[Violation]:
    if not limits.MIN_REPETITION_PENALTY <= sampling.repetition_penalty <= limits.MAX_REPETITION_PENALTY:
        yield Violation(
            "sampling.repetition_penalty",
            f"{sampling.repetition_penalty} is outside "
            f"[{limits.MIN_REPETITION_PENALTY:g}, {limits.MAX_REPETITION_PENALTY:g}]",
        )
    most = limits.MAX_PENALTY
    yield from range_violations("sampling.presence_penalty", sampling.presence_penalty, -most, most)
    yield from range_violations("sampling.frequency_penalty", sampling.frequency_penalty, -most, most)


def _bias_violations(biases: tuple[tuple[int, float], ...], model: ModelFacts | None) -> Iterator[Violation]:
    field = "sampling.logit_bias"
    if len(biases) > limits.MAX_LOGIT_BIASES:
        yield Violation(field, f"{len(biases)} ids; at most {limits.MAX_LOGIT_BIASES}")
    seen: set[int] = set()
    for token_id, bias in biases[: limits.MAX_LOGIT_BIASES]:
        where = f"{field}[{token_id}]"
        yield from token_violations(where, token_id, model)
        if token_id in seen:
            yield Violation(where, f"token {token_id} is named twice")
        seen.add(token_id)
        yield from range_violations(where, bias, -limits.MAX_LOGIT_BIAS, limits.MAX_LOGIT_BIAS)


def _banned_id_violations(ids: tuple[int, ...], model: ModelFacts | None) -> Iterator[Violation]:
    if len(ids) > limits.MAX_BANNED_FIRST_IDS:
        yield Violation("sampling.banned_first_ids", f"{len(ids)} ids; at most {limits.MAX_BANNED_FIRST_IDS}")
    for index, token_id in enumerate(ids[: limits.MAX_BANNED_FIRST_IDS]):
        yield from token_violations(f"sampling.banned_first_ids[{index}]", token_id, model)
