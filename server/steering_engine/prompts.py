"""From a request's prompt to token ids."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError

from steering_spec import Chat, InvalidRequestError, Prompt, PromptIds, PromptText, Violation

_LONG_CHARACTERS = 20_000  # tokenized in about 10 ms


def prompt_ids(tokenizer: Any, prompt: Prompt) -> tuple[int, ...]:
    """The token ids of a prompt; text is tokenized as it stands, chat is rendered by the tokenizer's template.

    Raises:
        InvalidRequestError: The prompt has no tokens, or the template refuses the messages.
    """
    if isinstance(prompt, PromptIds):
        return prompt.ids
    field = "text"
    if isinstance(prompt, PromptText):
        ids = tokenizer(prompt.text)["input_ids"]
    else:
        field = "chat.messages"
        ids = _chat_ids(tokenizer, prompt)
    if not ids:
        raise InvalidRequestError([Violation(field, "the prompt has no tokens")])
    return tuple(ids)


def _chat_ids(tokenizer: Any, chat: Chat) -> list[int]:
    messages = [{"role": message.role, "content": message.content} for message in chat.messages]
    options: dict[str, Any] = (
        {"continue_final_message": True} if chat.final_message_open else {"add_generation_prompt": True}
    )
    try:
        encoded = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
    except (TemplateError, ValueError, TypeError) as error:
        fault = Violation("chat.messages", f"the model's chat template refuses them: {error}")
        raise InvalidRequestError([fault]) from error
    ids: list[int] = encoded["input_ids"]
    return ids


def is_long(prompt: Prompt) -> bool:
    """Whether tokenizing takes so long that an event loop should not wait for it."""
    if isinstance(prompt, PromptIds):
        return False
    texts = (
        [prompt.text] if isinstance(prompt, PromptText) else [message.content for message in prompt.messages]
    )
    return sum(map(len, texts)) > _LONG_CHARACTERS
