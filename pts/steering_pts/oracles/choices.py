"""What a multiple-choice problem offers, and which of it is right."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from steering_pts.data import Problem
from steering_pts.errors import OracleError
from steering_pts.oracles.exact import plain_words

GoldKind = Literal["auto", "label", "index", "text"]
LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FIELDS: Final = ("choices", "options", "answer_choices", "candidates")

_BARE_LETTERS: Final = "ABCDEFGHIJ"  # offered where a problem says nothing but which letter is right
_LINE: Final = re.compile(r"[ \t]*[(\[]?([A-Z])[)\].:][ \t]+(\S.*?)[ \t]*")
_LABELLED: Final = re.compile(r"[(\[]?(\w{1,2})[)\]]?[.:]?(?:(?<=[)\].:])\s+(\S.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the choices: its label (`B`), and what else it is called, in plain words (its own text, or synonyms)."""

    label: str
    names: tuple[str, ...] = ()


YES_NO: Final = (Choice("yes", ("yes", "true")), Choice("no", ("no", "false")))


def offered_choices(problem: Problem) -> tuple[Choice, ...] | None:
    """The choices that a problem's fields or its question spell out; None where they don't.

    Fields named as in `FIELDS` are looked at first (`{"text": [...], "label": [...]}`, a list of texts or of
    `{"label", "text"}`, or `{"A": text, ...}`), then the last lines `A) ...`, `B) ...` of the question.
    """
    for name in FIELDS:
        if name in problem.fields:
            choices = _choices_of_field(problem.fields[name])
            if choices is not None:
                return choices
    return _choices_of_question(problem.question)


def choices_of(problem: Problem) -> tuple[Choice, ...]:
    """What a problem offers: what it spells out, or yes and no, or letters, where its gold answer is one of these.

    Raises:
        OracleError: It offers nothing that could be chosen.
    """
    choices = offered_choices(problem)
    if choices is not None:
        return choices
    gold = plain_words(problem.answer)
    if any(gold in choice.names for choice in YES_NO):
        return YES_NO
    match = _LABELLED.fullmatch(problem.answer.strip())
    if match and match[2] is None and match[1].upper() in _BARE_LETTERS:
        return tuple(Choice(letter) for letter in _BARE_LETTERS)
    raise OracleError(
        f"no choices: it has none of the fields {', '.join(FIELDS)}, its question has no lines 'A) ...', and its "
        f"answer {problem.answer!r:.80} is neither a letter from A to J nor yes, no, true or false"
    )


def gold_choice(problem: Problem, choices: Sequence[Choice], kind: GoldKind = "auto") -> Choice:
    """The choice that is right.

    The gold answer may be a label (`B`, `(B)`, `B) Paris`), the index of a choice counted from 0, or a choice's text.
    Left to itself (`auto`), a label goes before the others; a number that is one choice's index and another's text is
    refused, since nothing tells which is meant.

    Raises:
        OracleError: It is none of the choices, or two of them.
    """
    gold = problem.answer.strip()
    label = _by_label(gold, choices)
    index = choices[int(gold)] if re.fullmatch(r"\d{1,2}", gold) and int(gold) < len(choices) else None
    named = [choice for choice in choices if plain_words(gold) in choice.names]
    text = named[0] if len(named) == 1 else None
    readings = {"label": label, "index": index, "text": text}
    if kind != "auto":
        found = readings[kind]
    elif label is None and index is not None and text is not None and index != text:
        raise OracleError(
            f"its answer {gold!r} is the index of {index.label} and the text of {text.label}; say which is meant with "
            "the option gold=index or gold=text"
        )
    else:
        found = label or index or text
    if found is None:
        offered = ", ".join(choice.label for choice in choices)
        as_what = "label, index or text" if kind == "auto" else kind
        raise OracleError(
            f"its answer {gold!r:.80} is the {as_what} of none of its choices {offered}, or of several"
        )
    return found


def _by_label(gold: str, choices: Sequence[Choice]) -> Choice | None:
    match = _LABELLED.fullmatch(gold)
    if match is None:
        return None
    for choice in choices:
        if choice.label.casefold() == match[1].casefold():
            return choice if match[2] is None or plain_words(match[2]) in choice.names else None
    return None


def _choices_of_field(text: str) -> tuple[Choice, ...] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    match value:
        case {"text": list(texts), "label": list(labels)} if len(texts) == len(labels):
            pairs = list(zip(labels, texts, strict=True))
        case [{"label": _, "text": _}, *_] if all(isinstance(one, dict) for one in value):
            pairs = [(one.get("label"), one.get("text")) for one in value]
        case list(texts) if len(texts) <= len(LETTERS):
            pairs = list(zip(LETTERS, texts, strict=False))
        case dict():
            pairs = list(value.items())
        case _:
            return None
    if len(pairs) < 2 or not all(_is_plain(label) and _is_plain(text) for label, text in pairs):
        return None
    return _named((str(label), str(text)) for label, text in pairs)


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float)


def _choices_of_question(question: str) -> tuple[Choice, ...] | None:
    run: list[tuple[str, str]] = []
    last: list[tuple[str, str]] = []
    for line in question.split("\n"):
        match = _LINE.fullmatch(line)
        if match and match[1] == LETTERS[len(run)]:
            run.append((match[1], match[2]))
        elif match and match[1] == "A":
            run = [(match[1], match[2])]
        elif line.strip():
            run = []
        if len(run) >= 2:
            last = run
        if len(run) == len(LETTERS):
            break
    return _named(last) if last else None


def _named(pairs: Iterable[tuple[str, str]]) -> tuple[Choice, ...]:
    def names(text: str) -> tuple[str, ...]:
        plain = plain_words(text)
        synonyms = next((choice.names for choice in YES_NO if plain in choice.names), (plain,))
        return synonyms if plain else ()

    return tuple(Choice(label.strip(), names(text)) for label, text in pairs)
