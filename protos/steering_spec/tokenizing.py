"""What Tokenize and Detokenize ask for. Plain values; `tokenizing_admission` judges them."""

from __future__ import annotations

from dataclasses import dataclass

from steering_spec.request import Chat, PromptText


@dataclass(frozen=True, slots=True)
class TokenizeSpec:
    """A prompt whose token ids are wanted.

    Attributes:
        prompt: Text, or chat messages.
        model: `models/{model}`, or empty for the served one.
    """

    prompt: PromptText | Chat
    model: str = ""


@dataclass(frozen=True, slots=True)
class DetokenizeSpec:
    """Token ids whose text is wanted.

    Attributes:
        ids: The ids.
        skip_special_tokens: Leave special tokens out, as the text of a completion does.
        model: `models/{model}`, or empty for the served one.
    """

    ids: tuple[int, ...]
    skip_special_tokens: bool = False
    model: str = ""
