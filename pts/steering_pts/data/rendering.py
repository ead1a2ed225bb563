"""Questions and gold answers as text, from rows of the well-known layouts; what can't be one raises RowError."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from steering_pts.data.rows import Values
from steering_pts.data.values import RowError, as_text, nested_of, text_of

_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TRUTHS: Final[Mapping[str, str]] = {"true": "yes", "false": "no", "yes": "yes", "no": "no"}
_BINARY: Final[Mapping[str, str]] = {"1": "yes", "0": "no"}


def options_of(row: Values, name: str) -> dict[str, str]:
    """The options of a multiple-choice question by label.

    The field is `{"label": [...], "text": [...]}`, a list of `{"label", "text"}`, or a list of
    texts, whose labels are A, B, C …

    Raises:
        RowError: it is something else, has fewer than 2 options, or a label twice.
    """
    match nested_of(row, name):
        case {"label": list(labels), "text": list(texts)} if len(labels) == len(texts):
            pairs = list(zip(labels, texts, strict=True))
        case list(items) if all(
            isinstance(item, dict) and {"label", "text"} <= item.keys() for item in items
        ):
            pairs = [(item["label"], item["text"]) for item in items]
        case list(items) if len(items) <= len(_LETTERS) and not any(
            isinstance(i, list | dict) for i in items
        ):
            pairs = list(zip(_LETTERS, items, strict=False))
        case _:
            raise RowError(f"field {name!r} must be a list of options, or their texts with as many labels")
    options = {as_text(label).strip(): as_text(text).strip() for label, text in pairs}
    if len(options) < 2 or len(options) != len(pairs) or not all(options) or not all(options.values()):
        raise RowError(
            f"field {name!r} must hold at least two options, each with a label and a text of its own"
        )
    return options


def with_options(question: str, options: Mapping[str, str]) -> str:
    """A question with its options: a blank line, then one `LABEL) text` on each line."""
    return "\n".join([question.strip(), "", *(f"{label}) {text}" for label, text in options.items())])


def question_with_options(row: Values, name: str) -> str:
    """The question and its options."""
    return with_options(text_of(row, name), options_of(row, "choices"))


def label_of(row: Values, name: str) -> str:
    """The label of the right option, which must be one of them."""
    label, options = text_of(row, name).strip(), options_of(row, "choices")
    if label not in options:
        raise RowError(f"field {name!r} is {label!r:.40}, none of the labels {', '.join(options)}")
    return label


def letter_of(row: Values, name: str) -> str:
    """The letter of the right option, from its letter or its index."""
    text, letters = text_of(row, name).strip(), "".join(options_of(row, "choices"))
    if text.isdecimal() and len(text) <= 2 and int(text) < len(letters):
        return letters[int(text)]
    if text in [*letters]:
        return text
    raise RowError(f"field {name!r} is {text!r:.40}; expected 0 to {len(letters) - 1}, or A to {letters[-1]}")


def has_list(row: Values) -> bool:
    """Whether a row's choices are a list."""
    try:
        return isinstance(nested_of(row, "choices"), list)
    except RowError:
        return False


def question_after_passage(row: Values, name: str) -> str:
    """The passage, and the question about it."""
    return f"{text_of(row, 'passage').strip()}\n\n{text_of(row, name).strip()}"


def yes_or_no(row: Values, name: str) -> str:
    """A truth as yes or no; as a class it is 0 or 1, which as an answer would be a number."""
    value = row.get(name)
    text = as_text(value) if isinstance(value, bool) else text_of(row, name)
    if name == "label" and text in _BINARY:
        return _BINARY[text]
    if answer := _TRUTHS.get(text.strip().casefold()):
        return answer
    raise RowError(f"field {name!r} is {text!r:.40}; expected true or false")


def has_truth(row: Values) -> bool:
    """Whether a row's answer is true or false, or its label is 0 or 1."""
    if row.get("answer") is None:
        return str(row.get("label")).casefold() in {"true", "false", *_BINARY}
    value = row.get("answer")
    return isinstance(value, bool) or (
        isinstance(value, str) and value.strip().casefold() in {"true", "false"}
    )


def tests_of(row: Values, name: str) -> str:
    """The tests, one on each line."""
    tests = nested_of(row, name)
    if not isinstance(tests, list) or not tests or not all(isinstance(t, str) and t.strip() for t in tests):
        raise RowError(f"field {name!r} must be a list of tests")
    return "\n".join(tests)


def task_with_tests(row: Values, name: str) -> str:
    """The task and its tests."""
    # The tests name the function; without them nobody could know what it has to be called.
    return f"{text_of(row, name).strip()}\n\nThe code must pass these tests:\n\n{tests_of(row, 'test_list')}"


def holds(name: str, mark: str) -> Callable[[Values], bool]:
    """Whether a field of a row holds a mark."""
    return lambda row: mark in str(row.get(name, ""))


def is_nested(row: Values) -> bool:
    """Whether the question holds its options, as in the files that ARC was published in."""
    return _nested_question(row) is not None


def flattened(row: Values) -> Values:
    """A row whose question holds its options, with both beside one another; any other as it is."""
    question = _nested_question(row)
    return row if question is None else {**row, "question": question["stem"], "choices": question["choices"]}


def _nested_question(row: Values) -> Mapping[str, object] | None:
    try:
        question = nested_of(row, "question")
    except RowError:
        return None
    return question if isinstance(question, dict) and {"stem", "choices"} <= question.keys() else None
