"""Prompts, sampling and steering as callers write them, turned into the types of `steering_spec`."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex, TypeAlias

from steering_spec import Chat, ChatMessage, PromptIds, PromptText, SamplingParams, SteeringRule, SteeringSpec

Message: TypeAlias = ChatMessage | Mapping[str, str]
Prompt: TypeAlias = str | Sequence[int] | Sequence[Message] | PromptText | PromptIds | Chat
Steering: TypeAlias = SteeringSpec | SteeringRule | Sequence[SteeringRule]


def prompt_of(prompt: Prompt) -> PromptText | PromptIds | Chat:
    """A prompt in the form that its Python type says.

    A string is plain text; integers are token ids; `ChatMessage`s, or mappings with role and content, a chat.

    Raises:
        TypeError: It is none of these.
    """
    if isinstance(prompt, PromptText | PromptIds | Chat):
        return prompt
    if isinstance(prompt, str):
        return PromptText(prompt)
    if isinstance(prompt, bytes | Mapping):  # sequences too, but of nothing that is meant
        raise _no_prompt(prompt)
    items: list[Any] = list(prompt)
    if all(isinstance(item, SupportsIndex) for item in items):
        return PromptIds(tuple(map(operator.index, items)))
    return Chat(tuple(map(_chat_message, items)))


def steering_of(steering: Steering | None) -> SteeringSpec | None:
    """A steering spec from itself, from one rule, or from several.

    Raises:
        TypeError: It is none of these.
    """
    if steering is None or isinstance(steering, SteeringSpec):
        return steering
    rules = (steering,) if isinstance(steering, SteeringRule) else tuple(steering)
    for rule in rules:
        if not isinstance(rule, SteeringRule):
            raise TypeError(f"steering is a SteeringSpec, a SteeringRule or several; got {rule!r:.80}")
    return SteeringSpec(rules)


def sampling_of(sampling: SamplingParams | None) -> SamplingParams:
    """Sampling as it was given, or the defaults.

    Raises:
        TypeError: Its logit bias is a mapping, as other clients have it.
    """
    if sampling is not None and isinstance(sampling.logit_bias, Mapping):
        raise TypeError(
            "logit_bias is made of pairs of id and bias; of a mapping give tuple(mapping.items())"
        )
    return sampling or SamplingParams()


def _chat_message(message: Message) -> ChatMessage:
    if isinstance(message, ChatMessage):
        return message
    if isinstance(message, Mapping) and set(message) == {"role", "content"}:
        return ChatMessage(message["role"], message["content"])
    raise _no_prompt(message)


def _no_prompt(value: object) -> TypeError:
    return TypeError(
        "a prompt is a string, token ids, or chat messages (ChatMessage, or mappings with role and content); "
        f"got {type(value).__name__} {value!r:.80}"
    )
