"""From a request's prompt to token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from steering_spec import Chat, GenerationSpec, InvalidRequestError, Prompt, PromptIds, PromptText, Violation
from steering_spec.selector_admission import named_values

_LONG_CHARACTERS = 20_000  # tokenized in about 10 ms
TURN_CHARACTERS = 32
"""What a template puts around a message, about."""
# A template is a program: beside what it refuses by itself, these messages may lead it into an error of its own.
_TEMPLATE_ERRORS = (
    TemplateError,
    ValueError,
    TypeError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
)
_LONG_SELECTION = 2_000  # positions and token ids, judged in about 10 ms


def prompt_ids(tokenizer: Any, prompt: Prompt) -> tuple[int, ...]:
    """The token ids of a prompt; text is tokenized as it stands, chat is rendered by the tokenizer's template.

    Raises:
        InvalidRequestError: The prompt has no tokens, or the template refuses the messages.
    """
    if isinstance(prompt, PromptIds):
        return prompt.ids
    ids = tokenized(tokenizer, prompt)
    if not ids:
        field = "text" if isinstance(prompt, PromptText) else "chat.messages"
        raise InvalidRequestError([Violation(field, "the prompt has no tokens")])
    return tuple(ids)


def tokenized(tokenizer: Any, prompt: PromptText | Chat) -> list[int]:
    """The same of a text or a chat that may have no tokens.

    Raises:
        InvalidRequestError: The template refuses the messages.
    """
    if isinstance(prompt, Chat):
        return _chat_ids(tokenizer, prompt)
    # Without masks, which cost a long text more than its ids; and a text may be longer than the context here.
    ids: list[int] = tokenizer(prompt.text, return_attention_mask=False, verbose=False)["input_ids"]
    return ids


def detokenized(tokenizer: Any, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
    """The text of ids, without any tidying up of spaces."""
    text: str
    if getattr(type(tokenizer), "_decode", None) is PreTrainedTokenizerFast._decode:  # noqa: SLF001
        # What it does, but in a batch: only then do other threads run meanwhile.
        (text,) = tokenizer.backend_tokenizer.decode_batch(
            [list(ids)], skip_special_tokens=skip_special_tokens
        )
    else:
        text = tokenizer.decode(
            list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
    return text


def _chat_ids(tokenizer: Any, chat: Chat) -> list[int]:
    messages = [{"role": message.role, "content": message.content} for message in chat.messages]
    options: dict[str, Any] = (
        {"continue_final_message": True} if chat.final_message_open else {"add_generation_prompt": True}
    )
    try:
        encoded = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, tokenizer_kwargs={"verbose": False}, **options
        )
    except _TEMPLATE_ERRORS as error:
        fault = Violation("chat.messages", f"the model's chat template refuses them: {error}")
        raise InvalidRequestError([fault]) from error
    ids: list[int] = encoded["input_ids"]
    return ids


def is_long(spec: GenerationSpec) -> bool:
    """Whether judging and tokenizing a request takes so long that an event loop should not wait for it."""
    rules = () if spec.steering is None else spec.steering.rules
    if sum(named_values(rule.selector) for rule in rules) > _LONG_SELECTION:
        return True
    if isinstance(spec.prompt, PromptIds):
        return len(spec.prompt.ids) > _LONG_CHARACTERS
    if isinstance(spec.prompt, PromptText):
        return len(spec.prompt.text) > _LONG_CHARACTERS
    characters = sum(len(message.content) + TURN_CHARACTERS for message in spec.prompt.messages)
    return characters > _LONG_CHARACTERS
