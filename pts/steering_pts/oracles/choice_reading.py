r"""Reads which choice a completion makes.

The strongest kind of answer that a completion has decides, and of its kind the last one (or the first, if asked for):

1. **marked**: `#### B`, `\boxed{B}`, `Answer: B`, `the answer is (B)`, `the correct option is B`, `option B is
   correct`, `<answer>B</answer>`; `Answer:` may end its line, the next line is the answer then;
2. **a line of its own**: `(B)`, `B.`, `B) Paris`, `B - Paris`, `Paris`, `Yes`, `So, answer B.`; two such lines with
   different choices, one directly after the other, list the choices and are no answer;
3. **an opening**: the first or the last line begins `B) `, `B. `, `Yes, `, `Yes it is` or with a choice's text and a
   comma; it must be the only choice that any line begins with;
4. **the last line** names a choice as `(B)`, `option B` or `it's B`.

A place that names two choices (`A or B`, or two marks in one line) is an answer, of two choices. One that names none
(`the answer is not clear`) is no answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from steering_pts.oracles.choices import YES_NO, Choice
from steering_pts.oracles.exact import plain_words
from steering_pts.oracles.extraction import ANSWER_PHRASE, SENTENCE_END

Labels = frozenset[str]
_NONE: Final[Labels] = frozenset()

_REACH: Final = 300  # characters around a mark that are looked at, so that no text takes long
_LEADING_WORDS: Final = frozenset(name for choice in YES_NO for name in choice.names)
_HASHES: Final = re.compile(r"#{4,}(.*)")
_BOXED: Final = re.compile(r"\\f?box(?:ed)?\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_PHRASE: Final = re.compile(
    rf"{ANSWER_PHRASE}|\b(?:correct|right|best|final|my)\s+(?:choice|option)\s*(?:\b(?:is|(?:would|must)\s+be)\b\s*:?|[:=])[\s*_]*|"
    r"<answer>|\bI\s+(?:would\s+)?(?:choose|pick|select)\s*:?\s+",
    re.IGNORECASE,
)
_APPROVED: Final = re.compile(
    r"\bis\s+(?:the\s+)?(?:correct|right|best)(?:\s+(?:answer|choice|option|one))?\s*(?:[.,;:!*]|$|because\b|since\b)",
    re.IGNORECASE,
)
# What may stand before `B is correct`. Nothing else may: `neither A nor B is correct`, `I doubt that B is correct`.
_SO: Final = r"(?:so|thus|hence|therefore|then|clearly)\b\s?[,:]?\s"
_BEFORE_APPROVED: Final = re.compile(
    rf"\s?(?:(?:among|out\sof)\s.*,\s)?(?:{_SO}|(?:and|but|only|(?:I\s(?:think|believe)|this\smeans)(?:\sthat)?)\s)*",
    re.IGNORECASE,
)
_SO_ANSWER: Final = re.compile(rf"{_SO}(?:(?:the\s)?(?:answer|option|choice)\s)?", re.IGNORECASE)
_IT_IS: Final = re.compile(
    r"\b(?:it|this|that)(?:['\u2019]s|\s(?:is|must\sbe|should\sbe|would\sbe|has\sto\sbe))\s", re.IGNORECASE
)
_CLAUSE_END: Final = re.compile(
    r"(?P<line>[.!]?[*_]*$)|[.!;](?=[*_]*\s)|,\s(?:because|since|as|not)\b", re.IGNORECASE
)
_DOUBTED: Final = re.compile(
    r"\b(?:not|never|neither|nor|doubt|if|unless|whether|before|once|when)\b|n['\u2019]t\b", re.IGNORECASE
)
_FILLER: Final = re.compile(
    r"(?:(?:most\s+likely|probably|clearly|definitely|therefore|simply|actually|indeed|thus|likely|option|choice|letter|"
    r"number|answer|the|is)\b\s*:?\s*|:\s*)",
    re.IGNORECASE,
)
_TEXT: Final = re.compile(r"\\(?:text(?:bf|it|rm)?|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_AFTER_OPENING: Final = re.compile(
    r"[*_]*(?:[,.;:!]|\s[-\u2013\u2014]|$|\s(?:it|this|that|he|she|they|there|we|you|i)\s"
    r"(?:is|was|are|were|am|do|does|did|has|have|had|can|could|will|would|should)(?:\snot|n't)?\s*[*_]*(?:[,.;:!]|$))"
)
_DRESS: Final = " \t\r*_`\"'$"
_AFTER_LABEL: Final = (
    r"(?=\s*$|[).:,;/&]|\s*[(\u2013\u2014/&-]|\s+(?:because|since|as|is|and|or|with|for|due)\b)"
)
_IS_NOT: Final = re.compile(r"\bisn['\u2019]t\b", re.IGNORECASE)
_REJECTED: Final = re.compile(
    r"(?:\bnot|\bthan|\binstead\s+of|\bunlike|\bneither|\bnor|n't)\s+(?:be\s+|option\s+|choice\s+|the\s+)*\(?$",
    re.IGNORECASE,
)
_RULED_OUT: Final = re.compile(
    r"[\s*_]*(?:(?:is|was)\s+(?:not\b|wrong|incorrect|false)|isn't|wasn't|can't|can\s?not)", re.IGNORECASE
)
_AND_OR: Final = re.compile(r"\s*(?:(?:,|/|&|;|\band\b|\bor\b)\s*)+", re.IGNORECASE)


class ChoiceWords:
    """Finds the choices of one problem in pieces of text."""

    def __init__(self, choices: Sequence[Choice]) -> None:
        self._labels = {c.label.casefold(): c.label for c in choices if c.label not in _LEADING_WORDS}
        names: dict[str, set[str]] = {}
        for choice in choices:
            for name in choice.names:
                names.setdefault(name, set()).add(choice.label)
        self._names = {name: labels.pop() for name, labels in names.items() if len(labels) == 1}
        labels = "|".join(re.escape(label) for label in self._labels.values()) or r"(?!)"
        own = "|".join(re.escape(name) for name in sorted(self._names, key=len, reverse=True)) or r"(?!)"
        parts = [name for name in sorted(self._names, key=len, reverse=True) if name not in _LEADING_WORDS]
        # Only in brackets, or all alone, may a label have the other case: "a" is a word.
        self._alone = re.compile(rf"[(\[]?(?P<label>{labels})[)\]]?[.:,;]?", re.IGNORECASE)
        self._label = re.compile(rf"[(\[](?P<any>(?i:{labels}))[)\]]|(?P<label>{labels}){_AFTER_LABEL}")
        self._strong = re.compile(
            rf"[(\[]({labels})[)\]]|\b(?:option|choice)\s+({labels})(?!\w)", re.IGNORECASE
        )
        self._opening = re.compile(
            rf"(?:[(\[](?P<any>(?i:{labels}))[)\]]|(?P<label>{labels})[).:,])(?=\s|[*_]|$)"
        )
        self._word = re.compile(rf"(?<![\w'])(?P<label>{labels})(?![\w'])(?!(?<=A)\s+[a-z])")
        self._joined = re.compile(rf"{self._alone.pattern}[*_]*\s*(?:[-\u2013\u2014]\s+)?", re.IGNORECASE)
        self._own = re.compile(rf"(?:{own})(?!\w|\.\d|\s+(?:longer|one|more|doubt|way|matter)\b)")
        inside = "|".join(re.escape(name) for name in parts) or r"(?!)"
        self._inside = re.compile(rf"(?<![\w.])(?:{inside})(?!\w|\.\d)")

    def alone(self, text: str) -> Labels:
        """The choice that a text is, all of it: a label, a choice's text, or both."""
        bare = _undressed(text)
        if match := self._alone.fullmatch(bare):
            return self._labelled(match["label"])
        if label := self._names.get(plain_words(bare)):
            return frozenset([label])
        match = self._joined.match(bare)
        if match and self._names.get(plain_words(bare[match.end() :])) in self._labelled(match["label"]):
            return self._labelled(match["label"])
        return _NONE

    def line(self, line: str) -> Labels:
        """The choice that a line is, with or without `so, answer` before it."""
        found = self.alone(line)
        if not found and (so := _SO_ANSWER.match(bare := _undressed(line))):
            return self.alone(bare[so.end() :])
        return found

    def opening(self, line: str) -> Labels:
        """The choice that a line begins with, before it goes on with other words."""
        bare = _undressed(line)
        if match := self._opening.match(bare):
            return self._labelled(match["any"] or match["label"])
        plain = bare.casefold()
        match = self._own.match(plain)
        if match and _AFTER_OPENING.match(plain, match.end()):
            return frozenset([self._names[match.group()]])
        return _NONE

    def strong(self, line: str) -> Labels:
        """The choices that a line names as `(B)` or `option B`, without those that it rejects."""
        found = (match for match in self._strong.finditer(line) if not _is_rejected(line, *match.span()))
        return frozenset(label for match in found for label in self._labelled(match[1] or match[2]))

    def named_at_last(self, line: str) -> Labels:
        """The choices that a last line names as `(B)`, `option B` or `it's B`."""
        found = self.strong(line)
        line = " ".join(line.split())
        for match in _IT_IS.finditer(line):
            before = re.split(r"[.,;:!?]", line[max(match.start() - _REACH, 0) : match.start()])[-1]
            end = _CLAUSE_END.search(line, match.end(), match.end() + _REACH)
            choice = _undressed(line[match.end() : end.start()]) if end else ""
            if (
                end is None
                or end.end() == match.end() + _REACH
                or _DOUBTED.search(before)
                or choice in {"a", "i", "I"}
            ):
                continue
            if end["line"] is not None or plain_words(choice) not in _LEADING_WORDS:
                found |= self.alone(choice)
        return found

    def stated(self, text: str) -> Labels:
        """The choices that the words behind a mark state."""
        bare = _undressed(text)
        while True:
            found = self.alone(bare) or self._leading(bare)
            filler = _FILLER.match(bare)
            if found or filler is None or not filler.group():
                break
            bare = _undressed(bare[filler.end() :])
        return found or self.strong(bare) or self._named_inside(bare) or self._words(bare)

    def _leading(self, bare: str) -> Labels:
        """The choice at the beginning, and those that `and`, `or` or a comma join to it."""
        found, plain, end = _NONE, bare.casefold(), 0
        while True:
            if match := self._label.match(bare, end):
                found |= self._labelled(match["any"] or match["label"])
            elif match := self._own.match(plain, end):
                found |= {self._names[match.group()]}
            else:
                return found
            joint = _AND_OR.match(bare, match.end())
            if joint is None:
                return found
            end = joint.end()

    def _named_inside(self, text: str) -> Labels:
        plain = " ".join(text.casefold().split())
        found = (match for match in self._inside.finditer(plain) if not _is_rejected(plain, *match.span()))
        return frozenset(self._names[match.group()] for match in found)

    def _words(self, text: str) -> Labels:
        found = (match for match in self._word.finditer(text) if not _is_rejected(text, *match.span()))
        return frozenset(match["label"] for match in found if match["label"] != "I")

    def _labelled(self, label: str) -> Labels:
        return frozenset([self._labels[label.casefold()]])


@dataclass(slots=True)
class ChoiceReader:
    """Reads a completion line by line; its answer is that of the lines read so far."""

    words: ChoiceWords
    which: Literal["last", "first"]
    _marked: Labels = _NONE
    _expected: bool = False
    _alone: list[Labels] = field(default_factory=list)
    _listing: Labels = _NONE
    _openings: list[Labels] = field(default_factory=list)
    _last_line: str = ""

    def read(self, line: str) -> bool:
        """Reads one more line, without its newline; True once no further line can change the answer."""
        if self.closed or not line.strip():
            return self.closed
        self._last_line = line
        marked = frozenset(label for text in self._marked_texts(line) for label in text)
        if marked:
            self._marked = marked
        else:
            self._read_unmarked(line)
        return self.closed

    @property
    def closed(self) -> bool:
        """Whether no further line can change the answer: the first marked answer counts, and it was read."""
        return self.which == "first" and bool(self._marked)

    @property
    def answer(self) -> Labels:
        """The choice that was made; several where the completion does not decide, none where it makes none."""
        if self._marked:
            return self._marked
        end = -1 if self.which == "last" else 0
        if alone := [labels for labels in self._alone if labels]:
            return alone[end]
        ends = {label for labels in (self._openings[:1] + self._openings[-1:]) for label in labels}
        begun = {label for labels in self._openings for label in labels}
        if len(begun) == 1 and ends:
            return frozenset(ends)
        return self.words.named_at_last(self._last_line) if len(begun) <= 1 else _NONE

    def _marked_texts(self, line: str) -> Iterator[Labels]:
        expected, self._expected = self._expected, False
        line = _IS_NOT.sub("is not", line)
        if expected:
            yield self.words.stated(_sentence(line.strip()))
        for match in _HASHES.finditer(line):
            yield self.words.alone(match[1])
        for match in _BOXED.finditer(line):
            yield self.words.stated(match[1][:_REACH])
        for match in _PHRASE.finditer(line):
            rest = line[match.end() : match.end() + _REACH].replace("</answer>", "\n")
            self._expected = not _undressed(rest)
            yield self.words.stated(_sentence(rest))
        for match in _APPROVED.finditer(line):
            before = line[max(match.start() - _REACH, 0) : match.start()]
            sentence = re.split(r"[.!?;]", before)[-1]
            sentence = " ".join(sentence.split())
            subject = _BEFORE_APPROVED.match(sentence)
            yield self.words.strong(sentence) or self.words.alone(sentence[subject.end() if subject else 0 :])

    def _read_unmarked(self, line: str) -> None:
        alone = self.words.line(line)
        if alone and self._listing and alone != self._listing:
            if self._alone:
                self._alone[-1] = _NONE
            self._alone.append(_NONE)
        else:
            self._alone.append(alone)
        self._listing = alone
        self._openings.append(self.words.opening(line))


def read_choice(completion: str, words: ChoiceWords, which: Literal["last", "first"]) -> Labels:
    """The labels of the choice that a completion makes; several where it does not decide, none where it makes none."""
    reader = ChoiceReader(words, which)
    for line in completion.split("\n"):
        reader.read(line)
    return reader.answer


def _sentence(text: str) -> str:
    return SENTENCE_END.split(text[:_REACH], maxsplit=1)[0]


def _is_rejected(text: str, start: int, end: int) -> bool:
    """Whether the words around a choice say that it is not the answer."""
    before = _REJECTED.search(text[max(start - _REACH, 0) : start])
    return before is not None or _RULED_OUT.match(text, end) is not None


def _undressed(text: str) -> str:
    bare = text.strip(_DRESS)
    while (match := _TEXT.match(bare)) is not None:
        bare = (match[1] + bare[match.end() :]).strip(_DRESS)
    return bare
