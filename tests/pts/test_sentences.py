"""Where sentences begin and end."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering_pts.demo.tokenizer import build_tokenizer
from steering_pts.sentences import Decode, first_sentence, sentence_spans
from tests.support.models import byte_tokenizer

BYTES = byte_tokenizer()


@pytest.fixture(scope="module")
def demo() -> Any:
    return build_tokenizer(0)


def decode_bytes(ids: Any) -> str:
    return str(BYTES.decode(list(ids), skip_special_tokens=True))


def decoder(pieces: list[str]) -> Decode:
    """Token i has the text of the i-th piece."""
    return lambda ids: "".join(pieces[i] for i in ids)


def sentences(pieces: list[str]) -> list[str]:
    decode = decoder(pieces)
    ids = list(range(len(pieces)))
    return [decode(ids[start:end]) for start, end in sentence_spans(ids, decode)]


def of_text(text: str) -> list[str]:
    ids = BYTES(text)["input_ids"]
    return [decode_bytes(ids[start:end]) for start, end in sentence_spans(ids, decode_bytes)]


pieces = st.lists(
    st.sampled_from(
        ["a", " b", ".", ". ", "3", "。", "」", "1. ", "\n", "\n  ", " ", "", '."', "!", "\n\nc", "é"]
    )
)


@given(pieces)
def test_spans_are_the_completion_without_gaps(pieces: list[str]) -> None:
    spans = sentence_spans(range(len(pieces)), decoder(pieces))

    assert [start for start, _ in spans[:1]] == [0][: len(pieces)]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
    assert [end for _, end in spans[-1:]] == [len(pieces)][: len(pieces)]
    assert all(start < end for start, end in spans)


@given(pieces)
def test_every_sentence_but_a_blank_completion_has_text(pieces: list[str]) -> None:
    found = sentences(pieces)

    assert len(found) <= 1 or all(sentence.strip() for sentence in found)


@given(pieces)
def test_the_first_sentence_is_the_first_span(pieces: list[str]) -> None:
    ids = tuple(range(len(pieces)))
    spans = sentence_spans(ids, decoder(pieces))

    assert first_sentence(ids, decoder(pieces)) == (ids[: spans[0][1]] if spans else ())


@pytest.mark.parametrize(
    "found",
    [
        ["It is so. ", "Then", ""],
        ["Is it? ", "Yes! ", "Good."],
        ['He said "no." ', "She left."],
        ["(So it is.) ", "**Then.** ", "End"],
        ["Pi is 3.14 or so. ", "It is 3.5."],
        ["first line\n", "second line\n\n", "third"],
        ["first line\n  ", "indented"],
        ["See a.b for more; e.g.this"],
        ["One. \n\n", "Two."],
        ["\n\nOne. ", "Two."],
        ["One.\n"],
        ["首先计算三加五。", "结果是八！", "对吗？", "答案是十六。"],  # noqa: RUF001 -- these marks are meant
        ["「そうです。」", "と言った。\n", "終わり"],
        ["真的！？", "是的。。。", "对"],  # noqa: RUF001 -- these marks are meant
        ["**答案是八。**", "结束。 ", "End. ", "完"],
        ["圆周率是３．１４左右。", "对"],  # noqa: RUF001 -- this point is meant
        ["هل هذا صحيح؟ ", "نعم. ", "यह सही है। ", "हाँ"],
        ["1. First add. ", "2. Then divide. ", "**3.** So it is. ", "- 4.1. End"],
        ["Steps:\n", "1. First add 5.\n", "2. Then it is 18. ", "So"],
        ["It is\n", "18.\n", "So"],
        ["Is it 18? ", "Yes, 18. ", "So"],
    ],
)
def test_a_text_is_cut_after_its_sentences_and_lines(found: list[str]) -> None:
    assert of_text("".join(found)) == [sentence for sentence in found if sentence]


@pytest.mark.parametrize(
    "found",
    [
        [["One", "."], [" Two", "."]],  # the space comes with the next word
        [["One", ". "], ["Two", "."]],
        [["One", ".", ""], [" Two"]],  # a token without text
        [["One", ".", "\n\n"], ["Two"]],
        [["One", "\n    "], ["Two"]],  # an indented line
        [["One", "\n", "  "], ["Two"]],
        [["One", "\n", ""], ["Two"]],
        [["One"], ["\nTwo"]],
        [["One", ".", " ", ""]],
        [["3", ".", "14", " is"]],
        [["八", "。"], ["对"]],
        [["八", "。", "」"], ["对"]],
        [["八", "。", "\n"], ["对"]],
        [["1", ".", " First", "."], [" 2", ". Then"]],
    ],
)
def test_however_it_is_cut_into_tokens(found: list[list[str]]) -> None:
    assert sentences([piece for sentence in found for piece in sentence]) == ["".join(s) for s in found]


@given(st.text(st.sampled_from("a. 。é八\U0001f600\n!")))
def test_no_sentence_begins_within_a_character(text: str) -> None:
    found = of_text(text)

    assert "".join(found) == text
    assert all("\ufffd" not in sentence for sentence in found)


@given(st.lists(st.integers(2, 257)))
def test_bytes_that_are_no_characters_do_not_hide_the_sentence_before_them(garbage: list[int]) -> None:
    ids = [*BYTES("One. ")["input_ids"], *BYTES("Two")["input_ids"], *garbage]

    assert sentence_spans(ids, decode_bytes)[0] == (0, 5)


def test_the_end_of_sequence_belongs_to_the_last_sentence() -> None:
    ids = [*BYTES("One. Two.")["input_ids"], BYTES.eos_token_id]

    assert sentence_spans(ids, decode_bytes) == ((0, 5), (5, 10))


def test_without_tokens_there_are_no_sentences() -> None:
    assert sentence_spans((), decode_bytes) == ()
    assert first_sentence((), decode_bytes) == ()


def test_the_demonstration_models_tokens_are_cut_at_the_same_places(demo: Any) -> None:
    text = "It costs 3.50 each. So 2 * 3.50 = 7.\nThe answer is 7."
    ids = demo(text)["input_ids"]

    def decode(ids: Any) -> str:
        return str(demo.decode(list(ids), skip_special_tokens=True))

    found = [decode(ids[start:end]).strip() for start, end in sentence_spans(ids, decode)]
    assert found == ["It costs 3.50 each.", "So 2 * 3.50 = 7.", "The answer is 7."]
