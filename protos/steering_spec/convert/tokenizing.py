"""What Tokenize and Detokenize ask for, from and to protobuf."""

from __future__ import annotations

from steering.v1 import model_pb2
from steering_spec import limits
from steering_spec.convert.request import chat_from_proto, chat_to_proto
from steering_spec.request import PromptText
from steering_spec.tokenizing import DetokenizeSpec, TokenizeSpec
from steering_spec.violation import InvalidRequestError, Violation


def tokenize_from_proto(message: model_pb2.TokenizeRequest) -> TokenizeSpec:
    """Reads what is to be tokenized.

    Raises:
        InvalidRequestError: There is no prompt.
    """
    match message.WhichOneof("prompt"):
        case "text":
            return TokenizeSpec(PromptText(message.text), message.model)
        case "chat":
            return TokenizeSpec(chat_from_proto(message.chat), message.model)
        case _:
            raise InvalidRequestError([Violation("prompt", "no prompt; set one of text, chat")])


def tokenize_to_proto(spec: TokenizeSpec) -> model_pb2.TokenizeRequest:
    """Writes what is to be tokenized."""
    if isinstance(spec.prompt, PromptText):
        return model_pb2.TokenizeRequest(model=spec.model, text=spec.prompt.text)
    return model_pb2.TokenizeRequest(model=spec.model, chat=chat_to_proto(spec.prompt))


def detokenize_from_proto(message: model_pb2.DetokenizeRequest) -> DetokenizeSpec:
    """Reads which ids are to become text."""
    ids = tuple(message.ids[: limits.MAX_DETOKENIZED_IDS + 1])
    return DetokenizeSpec(ids, message.special_tokens_skipped, message.model)


def detokenize_to_proto(spec: DetokenizeSpec) -> model_pb2.DetokenizeRequest:
    """Writes which ids are to become text.

    Raises:
        ValueError: An id does not fit its field.
    """
    return model_pb2.DetokenizeRequest(
        model=spec.model, ids=spec.ids, special_tokens_skipped=spec.skip_special_tokens
    )
