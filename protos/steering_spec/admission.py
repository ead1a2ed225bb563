"""The one judgement of whether a request can be run, used by the client before sending and by the server.

`request_violations` reports everything that is wrong at once. Without facts it judges the request alone; with the
facts of a model, its vectors and the tokenized prompt it judges the rest too, so a request that passes with the
server's facts is one that the server runs. More facts only ever find more: what is refused without them is refused
with them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from steering_spec import limits
from steering_spec.conflict_admission import conflict_violations
from steering_spec.facts import FindVector, ModelFacts
from steering_spec.request import Chat, GenerationSpec, Prompt, PromptIds, PromptText
from steering_spec.rule_admission import rule_violations
from steering_spec.sampling_admission import sampling_violations
from steering_spec.selector_admission import named_values, selector_violations
from steering_spec.steering import ConflictPolicy, SteeringRule, SteeringSpec
from steering_spec.unicode import unicode_violations
from steering_spec.violation import Violation, ViolationKind

ROLES = ("system", "user", "assistant", "tool")


def request_violations(
    spec: GenerationSpec,
    model: ModelFacts | None = None,
    find_vector: FindVector | None = None,
    prompt_ids: tuple[int, ...] | None = None,
) -> list[Violation]:
    """Everything that keeps a request from being run (at most `MAX_VIOLATIONS`); empty when it can be.

    Args:
        spec: The request.
        model: Facts of the served model; None skips what depends on them.
        find_vector: Looks a vector up, see `FindVector`; None skips what depends on vectors.
        prompt_ids: The tokenized prompt; None skips what depends on its length, unless the request gives ids itself.
    """
    found = _violations(spec, model, find_vector, prompt_ids)
    return list(itertools.islice(found, limits.MAX_VIOLATIONS))


def _violations(
    spec: GenerationSpec,
    model: ModelFacts | None,
    find_vector: FindVector | None,
    prompt_ids: tuple[int, ...] | None,
) -> Iterator[Violation]:
    if prompt_ids is None and isinstance(spec.prompt, PromptIds):
        prompt_ids = spec.prompt.ids or None
    prompt_length = None if prompt_ids is None else len(prompt_ids)
    yield from prompt_violations(spec.prompt, model)
    yield from sampling_violations(spec.sampling, model, prompt_length)
    if len(spec.request_id) > limits.MAX_REQUEST_ID_CHARACTERS:
        yield Violation("request_id", f"longer than {limits.MAX_REQUEST_ID_CHARACTERS} characters")
    yield from unicode_violations("request_id", spec.request_id)
    yield from model_violations("model", spec.model, model)
    if model is not None and prompt_ids is not None:
        yield from _tokenized_prompt_violations(spec, model, prompt_ids)
    if spec.steering is not None:
        yield from _steering_violations(spec.steering, model, find_vector, prompt_length)


def _steering_violations(
    steering: SteeringSpec,
    model: ModelFacts | None,
    find_vector: FindVector | None,
    prompt_length: int | None,
) -> Iterator[Violation]:
    if len(steering.rules) > limits.MAX_RULES:
        yield Violation("steering.rules", f"more than {limits.MAX_RULES} rules")
    rules = steering.rules[: limits.MAX_RULES]
    named = sum(named_values(rule.selector) for rule in rules)
    if named > limits.MAX_SELECTED_POSITIONS:
        yield Violation(
            "steering.rules",
            f"{named} explicit positions and token ids in all; at most {limits.MAX_SELECTED_POSITIONS}",
        )
        return
    max_steps, vocab_size = (None, None) if model is None else (model.max_context_tokens, model.vocab_size)
    if max_steps is not None and prompt_length is not None and prompt_length < max_steps:
        max_steps -= prompt_length
    well_placed: dict[int, SteeringRule] = {}
    for index, rule in enumerate(rules):
        path = f"steering.rules[{index}]"
        yield from rule_violations(path, rule, model, find_vector)
        well_placed[index] = rule
        for violation in selector_violations(
            f"{path}.selector", rule.selector, prompt_length, max_steps, vocab_size
        ):
            well_placed.pop(index, None)
            yield violation
    if steering.conflict_policy is ConflictPolicy.REJECT:
        yield from conflict_violations(well_placed, prompt_length, find_vector)


def model_violations(field: str, name: str, model: ModelFacts | None) -> Iterator[Violation]:
    """Whether a request names another model than the served one; the empty name means that one."""
    if model is not None and name not in {"", model.name}:
        description = f"{name[:100]!r} is not served here; the served model is {model.name!r}"
        yield Violation(field, description, ViolationKind.NOT_FOUND)


def prompt_violations(prompt: Prompt, model: ModelFacts | None) -> Iterator[Violation]:
    """What is wrong with a prompt, before it is tokenized."""
    if isinstance(prompt, PromptText):
        if not prompt.text:
            yield Violation("text", "the prompt is empty")
        yield from unicode_violations("text", prompt.text)
        yield from _text_violations("text", len(prompt.text), model)
    elif isinstance(prompt, PromptIds):
        if not prompt.ids:
            yield Violation("tokens.ids", "the prompt is empty")
        if model is not None and len(prompt.ids) > model.max_context_tokens:
            yield Violation(
                "tokens.ids", f"{len(prompt.ids)} tokens exceed the context of {model.max_context_tokens}"
            )
            return
        vocab_size = limits.INT32_MAX if model is None else model.vocab_size
        for index, token_id in enumerate(prompt.ids):
            if not 0 <= token_id < vocab_size:
                yield Violation(f"tokens.ids[{index}]", f"{token_id} is outside [0, {vocab_size})")
    else:
        yield from chat_violations(prompt, model)
        yield from _text_violations("chat.messages", sum(len(one.content) for one in prompt.messages), model)


def _text_violations(field: str, characters: int, model: ModelFacts | None) -> Iterator[Violation]:
    # Tokenizing megabytes takes seconds; a text that can't fit is refused by its length alone.
    if model is not None:
        most = limits.MAX_CHARACTERS_PER_TOKEN * model.max_context_tokens
        if characters > most:
            yield Violation(
                field,
                f"{characters} characters; at most {most} for a context of {model.max_context_tokens} tokens",
            )


def chat_violations(chat: Chat, model: ModelFacts | None) -> Iterator[Violation]:
    """What is wrong with chat messages, their length apart."""
    if not chat.messages:
        yield Violation("chat.messages", "the prompt is empty")
    if len(chat.messages) > limits.MAX_MESSAGES:
        yield Violation("chat.messages", f"more than {limits.MAX_MESSAGES} messages")
        return
    for index, message in enumerate(chat.messages):
        yield from unicode_violations(f"chat.messages[{index}].content", message.content)
        if message.role not in ROLES:
            yield Violation(
                f"chat.messages[{index}].role", f"{message.role[:40]!r} is none of {', '.join(ROLES)}"
            )
    if chat.final_message_open and chat.messages and chat.messages[-1].role != "assistant":
        yield Violation("chat.final_message_open", "only an assistant message can be left open")
    if model is not None and not model.chat_supported:
        yield Violation(
            "chat", "the model has no chat template; send text or tokens", ViolationKind.PRECONDITION
        )


def _tokenized_prompt_violations(
    spec: GenerationSpec, model: ModelFacts, prompt_ids: tuple[int, ...]
) -> Iterator[Violation]:
    if not isinstance(spec.prompt, PromptIds) and max(prompt_ids, default=0) >= model.vocab_size:
        # A tokenizer may know more tokens than the model.
        yield Violation(
            "prompt", f"its token {max(prompt_ids)} is none of the model's {model.vocab_size} tokens"
        )
    room = model.max_context_tokens - len(prompt_ids)
    asked = spec.sampling.max_tokens
    if room < 0 and isinstance(spec.prompt, PromptIds):
        return  # said of the prompt itself
    if room < 1:
        yield Violation(
            "prompt", f"{len(prompt_ids)} tokens leave no room in a context of {model.max_context_tokens}"
        )
    elif asked is not None and asked > room:
        yield Violation(
            "sampling.max_token_count",
            f"{len(prompt_ids)} prompt tokens + {asked} exceed the context of {model.max_context_tokens}; "
            f"at most {room} fit",
        )
