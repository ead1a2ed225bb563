"""The one judgement of whether a request can be run, used by the client before sending and by the server.

`request_violations` reports everything that is wrong at once. Without facts it judges the request alone; with the
facts of a model, its vectors and the tokenized prompt it judges the rest too, so a request that passes with the
server's facts is one that the server runs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from steering_spec import limits
from steering_spec.naming import VectorRef
from steering_spec.request import Chat, GenerationSpec, PromptIds, PromptText, SamplingParams
from steering_spec.selector_admission import named_positions, selector_violations
from steering_spec.steering import ContextTrigger, SteeringRule
from steering_spec.violation import Violation, ViolationKind

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What admission needs to know of the served model."""

    name: str
    layer_count: int
    vocab_size: int
    max_context_tokens: int
    default_max_tokens: int
    chat_supported: bool


@dataclass(frozen=True, slots=True)
class VectorFacts:
    """What admission needs to know of a loaded vector.

    Attributes:
        sha256: Digest of the file.
        layers: Blocks with a direction.
        context_count: Recorded pivot contexts.
        probes: Blocks with a probe, each with the file's threshold, or None where it has none.
        centroids: Blocks with centroids, each with the file's least cosine, or None where it has none.
    """

    sha256: str
    layers: tuple[int, ...]
    context_count: int
    probes: Mapping[int, float | None] = field(default_factory=dict)
    centroids: Mapping[int, float | None] = field(default_factory=dict)


def request_violations(
    spec: GenerationSpec,
    model: ModelFacts | None = None,
    find_vector: Callable[[VectorRef], VectorFacts | None] | None = None,
    prompt_ids: tuple[int, ...] | None = None,
) -> list[Violation]:
    """Everything that keeps a request from being run (at most `MAX_VIOLATIONS`); empty when it can be.

    Args:
        spec: The request.
        model: Facts of the served model; None skips what depends on them.
        find_vector: Looks a vector up by id, ignoring the pin; None skips what depends on vectors.
        prompt_ids: The tokenized prompt; None skips what depends on its length.
    """
    found = _violations(spec, model, find_vector, prompt_ids)
    return list(itertools.islice(found, limits.MAX_VIOLATIONS))


def _violations(
    spec: GenerationSpec,
    model: ModelFacts | None,
    find_vector: Callable[[VectorRef], VectorFacts | None] | None,
    prompt_ids: tuple[int, ...] | None,
) -> Iterator[Violation]:
    yield from _prompt_violations(spec, model)
    yield from _sampling_violations(spec.sampling)
    yield from _banned_id_violations(spec.sampling.banned_first_ids, model)
    if len(spec.request_id) > limits.MAX_REQUEST_ID_CHARACTERS:
        yield Violation("request_id", f"longer than {limits.MAX_REQUEST_ID_CHARACTERS} characters")
    if model is not None and spec.model and spec.model != model.name:
        yield Violation(
            "model",
            f"{spec.model!r} is not served here; the served model is {model.name!r}",
            ViolationKind.NOT_FOUND,
        )
    if model is not None and prompt_ids is not None:
        yield from _tokenized_prompt_violations(spec, model, prompt_ids)
    if spec.steering is not None:
        if len(spec.steering.rules) > limits.MAX_RULES:
            yield Violation("steering.rules", f"more than {limits.MAX_RULES} rules")
        named = sum(named_positions(rule.selector) for rule in spec.steering.rules[: limits.MAX_RULES])
        if named > limits.MAX_SELECTED_POSITIONS:
            yield Violation(
                "steering.rules",
                f"{named} explicit positions in all; at most {limits.MAX_SELECTED_POSITIONS}",
            )
            return
        prompt_length = None if prompt_ids is None else len(prompt_ids)
        max_steps = None if model is None else model.max_context_tokens
        for index, rule in enumerate(spec.steering.rules[: limits.MAX_RULES]):
            path = f"steering.rules[{index}]"
            yield from _rule_violations(path, rule, model, find_vector)
            yield from selector_violations(f"{path}.selector", rule.selector, prompt_length, max_steps)


def _prompt_violations(spec: GenerationSpec, model: ModelFacts | None) -> Iterator[Violation]:
    prompt = spec.prompt
    if isinstance(prompt, PromptText):
        if not prompt.text:
            yield Violation("text", "the prompt is empty")
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
        yield from _chat_violations(prompt, model)


def _text_violations(field: str, characters: int, model: ModelFacts | None) -> Iterator[Violation]:
    # Tokenizing megabytes takes seconds; a text that can't fit is refused by its length alone.
    if model is not None:
        most = limits.MAX_CHARACTERS_PER_TOKEN * model.max_context_tokens
        if characters > most:
            yield Violation(
                field,
                f"{characters} characters; at most {most} for a context of {model.max_context_tokens} tokens",
            )


def _chat_violations(chat: Chat, model: ModelFacts | None) -> Iterator[Violation]:
    if not chat.messages:
        yield Violation("chat.messages", "the prompt is empty")
    yield from _text_violations("chat.messages", sum(len(one.content) for one in chat.messages), model)
    for index, message in enumerate(chat.messages):
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


def _sampling_violations(sampling: SamplingParams) -> Iterator[Violation]:
    if not 0 <= sampling.temperature <= limits.MAX_TEMPERATURE:
        yield Violation(
            "sampling.temperature", f"{sampling.temperature} is outside [0, {limits.MAX_TEMPERATURE:g}]"
        )
    if not 0 < sampling.top_p <= 1:
        yield Violation("sampling.top_p", f"{sampling.top_p} is outside (0, 1]")
    if not 0 <= sampling.min_p <= 1:
        yield Violation("sampling.min_p", f"{sampling.min_p} is outside [0, 1]")
    if sampling.top_k is not None:
        yield from _count_violations("sampling.top_k", sampling.top_k)
    if sampling.max_tokens is not None:
        yield from _count_violations("sampling.max_token_count", sampling.max_tokens)
    if sampling.seed is not None and not -(2**63) <= sampling.seed < 2**63:
        yield Violation("sampling.seed", "outside the range of a signed 64-bit integer")
    if len(sampling.stop) > limits.MAX_STOP_SEQUENCES:
        yield Violation("sampling.stop_sequences", f"more than {limits.MAX_STOP_SEQUENCES} stop sequences")
    for index, text in enumerate(sampling.stop[: limits.MAX_STOP_SEQUENCES]):
        if not 1 <= len(text) <= limits.MAX_STOP_SEQUENCE_CHARACTERS:
            yield Violation(
                f"sampling.stop_sequences[{index}]",
                f"{len(text)} characters; expected 1 to {limits.MAX_STOP_SEQUENCE_CHARACTERS}",
            )


def _banned_id_violations(ids: tuple[int, ...], model: ModelFacts | None) -> Iterator[Violation]:
    if len(ids) > limits.MAX_BANNED_FIRST_IDS:
        yield Violation("sampling.banned_first_ids", f"{len(ids)} ids; at most {limits.MAX_BANNED_FIRST_IDS}")
    vocab_size = limits.INT32_MAX if model is None else model.vocab_size
    for index, token_id in enumerate(ids[: limits.MAX_BANNED_FIRST_IDS]):
        if not 0 <= token_id < vocab_size:
            yield Violation(f"sampling.banned_first_ids[{index}]", f"{token_id} is outside [0, {vocab_size})")


def _count_violations(field: str, value: int, least: int = 1) -> Iterator[Violation]:
    if not least <= value <= limits.INT32_MAX:
        yield Violation(field, f"{value} is outside [{least}, {limits.INT32_MAX}]")


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


def _rule_violations(
    path: str,
    rule: SteeringRule,
    model: ModelFacts | None,
    find_vector: Callable[[VectorRef], VectorFacts | None] | None,
) -> Iterator[Violation]:
    if not math.isfinite(rule.strength) or abs(rule.strength) > limits.MAX_STRENGTH:
        yield Violation(
            f"{path}.strength",
            f"{rule.strength} is outside [-{limits.MAX_STRENGTH:g}, {limits.MAX_STRENGTH:g}]",
        )
    yield from _layer_violations(f"{path}.layers", rule.layers, model)
    if rule.trigger is not None:
        yield from _trigger_violations(f"{path}.trigger", rule.trigger)
    try:
        ref = VectorRef.parse(rule.vector)
    except ValueError as error:
        yield Violation(f"{path}.vector", str(error))
        return
    if find_vector is not None:
        layer_count = limits.INT32_MAX if model is None else model.layer_count
        yield from _vector_violations(path, rule, ref, find_vector(ref), layer_count)


def _layer_violations(path: str, layers: tuple[int, ...], model: ModelFacts | None) -> Iterator[Violation]:
    seen: set[int] = set()
    layer_count = limits.INT32_MAX if model is None else model.layer_count
    for index, layer in enumerate(layers):
        if not 0 <= layer < layer_count:
            yield Violation(f"{path}[{index}]", f"block {layer} does not exist; expected [0, {layer_count})")
        elif layer in seen:
            yield Violation(f"{path}[{index}]", f"block {layer} is named twice")
        seen.add(layer)


def _trigger_violations(path: str, trigger: ContextTrigger) -> Iterator[Violation]:
    at_least_one: Mapping[str, int | None] = {
        "context.min_match_token_count": trigger.min_match_tokens,
        "context.hold_step_count": trigger.hold_steps,
        "max_firing_count": trigger.max_firings,
    }
    for name, value in at_least_one.items():
        if value is not None:
            yield from _count_violations(f"{path}.{name}", value)
    if (trigger.min_match_tokens or 0) > limits.MAX_CONTEXT_MATCH:
        yield Violation(
            f"{path}.context.min_match_token_count",
            f"{trigger.min_match_tokens} can't be matched: a context has at most {limits.MAX_CONTEXT_MATCH} tokens",
        )
    yield from _count_violations(f"{path}.context.cooldown_step_count", trigger.cooldown_steps, least=0)


def _vector_violations(
    path: str, rule: SteeringRule, ref: VectorRef, facts: VectorFacts | None, layer_count: int
) -> Iterator[Violation]:
    if facts is None:
        yield Violation(f"{path}.vector", f"no vector {ref.id!r} is loaded", ViolationKind.NOT_FOUND)
        return
    if ref.sha256 is not None and ref.sha256 != facts.sha256:
        yield Violation(
            f"{path}.vector", f"{ref.id!r} is loaded with the digest {facts.sha256}, not {ref.sha256}"
        )
    for index, layer in enumerate(rule.layers):
        if 0 <= layer < layer_count and layer not in facts.layers:
            yield Violation(
                f"{path}.layers[{index}]",
                f"vector {ref.id!r} has no direction at block {layer}; it has {list(facts.layers)}",
                ViolationKind.PRECONDITION,
            )
    if rule.trigger is not None and facts.context_count == 0:
        yield Violation(
            f"{path}.trigger", f"vector {ref.id!r} has no recorded pivot contexts", ViolationKind.PRECONDITION
        )
