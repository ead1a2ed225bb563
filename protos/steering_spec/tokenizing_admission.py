"""The one judgement of whether a text can be tokenized, or ids turned into text; client and server ask it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from steering_spec import limits
from steering_spec.admission import chat_violations, model_violations
from steering_spec.facts import ModelFacts
from steering_spec.request import PromptText
from steering_spec.tokenizing import DetokenizeSpec, TokenizeSpec
from steering_spec.unicode import unicode_violations
from steering_spec.violation import Violation


def tokenize_violations(spec: TokenizeSpec, model: ModelFacts | None = None) -> list[Violation]:
    """Everything that keeps a prompt from being tokenized (at most `MAX_VIOLATIONS`).

    Args:
        spec: The prompt; it may be longer than the model's context.
        model: Facts of the served model; None skips what depends on them.
    """
    return list(itertools.islice(_tokenize_violations(spec, model), limits.MAX_VIOLATIONS))


def _tokenize_violations(spec: TokenizeSpec, model: ModelFacts | None) -> Iterator[Violation]:
    yield from model_violations("model", spec.model, model)
    if isinstance(spec.prompt, PromptText):
        field, characters = "text", len(spec.prompt.text)
        yield from unicode_violations(field, spec.prompt.text)
    else:
        field, characters = "chat.messages", sum(len(one.content) for one in spec.prompt.messages)
        yield from chat_violations(spec.prompt, model)
    if characters > limits.MAX_TOKENIZED_CHARACTERS:
        yield Violation(
            field, f"{characters} characters; at most {limits.MAX_TOKENIZED_CHARACTERS} are tokenized"
        )


def detokenize_violations(spec: DetokenizeSpec, model: ModelFacts | None = None) -> list[Violation]:
    """Everything that keeps ids from being turned into text (at most `MAX_VIOLATIONS`).

    Args:
        spec: The ids.
        model: Facts of the served model; None skips what depends on them.
    """
    return list(itertools.islice(_detokenize_violations(spec, model), limits.MAX_VIOLATIONS))


def _detokenize_violations(spec: DetokenizeSpec, model: ModelFacts | None) -> Iterator[Violation]:
    yield from model_violations("model", spec.model, model)
    if len(spec.ids) > limits.MAX_DETOKENIZED_IDS:
        yield Violation("ids", f"more than {limits.MAX_DETOKENIZED_IDS} ids")
        return
    vocab_size = limits.INT32_MAX if model is None else model.vocab_size
    for index, token_id in enumerate(spec.ids):
        if not 0 <= token_id < vocab_size:
            yield Violation(f"ids[{index}]", f"{token_id} is outside [0, {vocab_size})")
