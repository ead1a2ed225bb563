"""Text while it grows: whole characters only, and never a part of a stop sequence."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from steering_engine.engine.text import TextStream
from tests.support.models import byte_tokenizer

TOKENIZER = byte_tokenizer()
EOS = 1
UNKNOWN = "<unk>"


def ids_of(text: str) -> list[int]:
    ids: list[int] = TOKENIZER(text)["input_ids"]
    return ids


def bytes_to_ids(data: bytes) -> list[int]:
    alphabet = {
        value: TOKENIZER.convert_tokens_to_ids(character) for value, character in _byte_characters().items()
    }
    return [alphabet[value] for value in data]


def _byte_characters() -> dict[int, str]:
    """GPT-2's characters for bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [value for value in range(256) if value not in printable]
    return {value: chr(value) for value in printable} | {
        value: chr(256 + n) for n, value in enumerate(others)
    }


def deltas(ids: list[int], *stop: str, tokenizer: Any = TOKENIZER, min_tokens: int = 0) -> list[str]:
    """What comes out at each token, and at the end."""
    stream = TextStream(tokenizer, stop, min_tokens)
    return [*(stream.feed(token_id) for token_id in ids), stream.finish()]


def test_ascii_comes_out_letter_by_letter() -> None:
    assert deltas(ids_of("abc")) == ["a", "b", "c", ""]


def test_a_character_comes_out_when_it_is_whole() -> None:
    assert deltas(ids_of("é€🙂")) == ["", "é", "", "", "€", "", "", "", "🙂", ""]


def test_a_character_that_never_becomes_whole_is_dropped() -> None:
    assert deltas(ids_of("a🙂")[:-1]) == ["a", "", "", "", ""]


def test_special_tokens_are_no_text() -> None:
    assert deltas([*ids_of("ab"), EOS]) == ["a", "b", "", ""]


def test_a_space_survives_any_number_of_special_tokens() -> None:
    pieces = {UNKNOWN: 0, "<s>": 1, "▁the": 2, "▁a": 3}
    backend = Tokenizer(models.WordLevel(pieces, unk_token=UNKNOWN))
    backend.add_special_tokens(["<s>"])
    backend.decoder = decoders.Metaspace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    stream = TextStream(tokenizer)
    assert [stream.feed(token_id) for token_id in [2, *[1] * 40, 3, 2]] == ["the", *[""] * 40, " a", " the"]


def test_bytes_that_are_no_character_become_replacement_characters_once_that_is_certain() -> None:
    assert deltas([*bytes_to_ids(b"\xff"), *ids_of("a")]) == ["", "�a", ""]


def test_a_long_run_of_bytes_that_are_no_character_does_not_wait_for_ever() -> None:
    texts = deltas(bytes_to_ids(b"\x80" * 1000) + ids_of("after"))
    assert "".join(texts) == "�" * 1000 + "after"
    assert sum(bool(text) for text in texts[:1000]) > 50


def test_a_character_right_after_a_run_of_bytes_is_whole() -> None:
    for count in range(40):
        text = "".join(deltas(bytes_to_ids(b"\x80" * count + "🙂".encode())))
        assert text == "�" * count + "🙂"


characters = st.characters(codec="utf-8", exclude_characters="�")


@given(st.text(characters))
def test_deltas_add_up_to_the_text(text: str) -> None:
    assert "".join(deltas(ids_of(text))) == text


@given(st.binary(max_size=60))
@settings(max_examples=300)
def test_any_bytes_give_what_decoding_all_of_them_gives_but_for_an_unfinished_end(data: bytes) -> None:
    ids = bytes_to_ids(data)
    assert "".join(deltas(ids)).rstrip("�") == TOKENIZER.decode(ids).rstrip("�")


class TestStop:
    def test_the_text_ends_before_the_stop(self) -> None:
        stream = TextStream(TOKENIZER, ("END",))
        texts = [stream.feed(token_id) for token_id in ids_of("oneENDtwo")]
        assert "".join(texts) == "one"
        assert stream.stopped

    def test_what_may_become_the_stop_waits(self) -> None:
        assert deltas(ids_of("aENDb"), "END") == ["a", "", "", "", "", ""]
        assert deltas(ids_of("aENbc"), "END") == ["a", "", "", "ENb", "c", ""]

    def test_what_waited_comes_out_at_the_end(self) -> None:
        assert deltas(ids_of("aEN"), "END") == ["a", "", "", "EN"]

    def test_a_beginning_inside_the_waiting_text_is_not_forgotten(self) -> None:
        assert "".join(deltas(ids_of("xaaab!"), "aab")) == "xa"

    def test_the_first_of_several_stops_counts(self) -> None:
        assert "".join(deltas(ids_of("one, two. three"), ".", ", t")) == "one"

    def test_a_stop_inside_one_token_ends_the_text_within_it(self) -> None:
        tokenizer = word_tokenizer("say", "he", "llo wor", "ld")
        assert deltas([1, 2, 3], "lo", tokenizer=tokenizer) == ["say", "he", "l", ""]

    def test_a_stop_spans_tokens(self) -> None:
        tokenizer = word_tokenizer("say", "he", "llo wor", "ld")
        assert deltas([2, 3, 4], "o world", tokenizer=tokenizer) == ["he", "ll", "", ""]

    def test_nothing_comes_after_the_stop(self) -> None:
        stream = TextStream(TOKENIZER, ("b",))
        assert [stream.feed(token_id) for token_id in ids_of("abc")] == ["a", "", ""]
        assert stream.finish() == ""

    @given(
        st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3)
    )
    @settings(max_examples=500)
    def test_the_text_is_everything_before_the_first_completed_stop(
        self, text: str, stops: list[str]
    ) -> None:
        ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
        expected = text
        if ends:
            seen = text[: ends[0]]
            expected = seen[: min(seen.find(stop) for stop in stops if stop in seen)]
        assert "".join(deltas(ids_of(text), *stops)) == expected

    @pytest.mark.parametrize("length", [4, 256])
    def test_a_stop_of_any_length_is_looked_at_a_few_times_for_each_character(self, length: int) -> None:
        looks = 0

        class Watched(str):
            __slots__ = ()

            def __getitem__(self, key: Any) -> str:
                nonlocal looks
                looks += 1
                return super().__getitem__(key)

            def startswith(self, *given: Any) -> bool:
                nonlocal looks
                looks += 1
                return super().startswith(*given)

        text = "a" * 500
        stops = ["a" * (length - 1) + "!", *(letter * length for letter in "bcdefghijklmnop")]
        assert "".join(deltas(ids_of(text), *map(Watched, stops))) == text
        # One look decides a character; each further one gives up a character that was matched before.
        assert 0 < looks <= 3 * len(stops) * (len(text) + length)

    @given(st.text("ab🙂é", max_size=20), st.text("ab🙂é", min_size=1, max_size=3))
    def test_no_part_of_a_stop_that_comes_ever_gets_out(self, text: str, stop: str) -> None:
        stream = TextStream(TOKENIZER, (stop,))
        out = ""
        for token_id in ids_of(text + stop):
            out += stream.feed(token_id)
            assert stop not in out
        assert (text + stop).startswith(out + stop)


class TestStopsFromSomeTokenOn:
    def test_an_earlier_stop_is_text_like_any_other_and_is_never_held_back(self) -> None:
        assert deltas(ids_of("ENDxENDy"), "END", min_tokens=3) == ["E", "N", "D", "x", "", "", "", "", ""]
        assert "".join(deltas(ids_of("ENDxENDy"), "END", min_tokens=3)) == "ENDx"

    def test_a_stop_that_began_in_earlier_text_is_none(self) -> None:
        assert deltas(ids_of("aENDb"), "END", min_tokens=2) == ["a", "E", "N", "D", "b", ""]
        assert deltas(ids_of("aENDb"), "END", min_tokens=1) == ["a", "", "", "", "", ""]

    def test_a_stop_may_be_all_of_the_first_token_that_counts(self) -> None:
        tokenizer = word_tokenizer("say", "stop", "!")
        assert deltas([2, 2, 3], "stop", tokenizer=tokenizer, min_tokens=1) == ["stop", "", "", ""]

    def test_a_character_belongs_to_the_token_that_makes_it_whole(self) -> None:
        # Three of its four bytes come before; its last one is the first token that counts.
        assert deltas(ids_of("a🙂b"), "🙂", min_tokens=4) == ["a", "", "", "", "", "", ""]
        assert deltas(ids_of("a🙂b"), "🙂", min_tokens=5) == ["a", "", "", "", "🙂", "b", ""]

    def test_what_waited_comes_out_at_the_end(self) -> None:
        assert deltas(ids_of("ENEN"), "END", min_tokens=2) == ["E", "N", "", "", "EN"]

    @given(
        st.text("abc", max_size=30),
        st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
        st.integers(0, 32),
    )
    @settings(max_examples=500)
    def test_the_text_is_the_earlier_text_and_then_everything_before_the_first_stop(
        self, text: str, stops: list[str], min_tokens: int
    ) -> None:
        early, late = text[:min_tokens], text[min_tokens:]
        expected = early + "".join(deltas(ids_of(late), *stops))
        found = deltas(ids_of(text), *stops, min_tokens=min_tokens)
        assert "".join(found) == expected
        assert found[: len(early)] == list(early)

    @given(st.text("ab🙂é", max_size=20), st.text("ab🙂é", min_size=1, max_size=3), st.integers(0, 30))
    def test_no_part_of_a_stop_that_counts_ever_gets_out_and_no_character_is_split(
        self, text: str, stop: str, min_tokens: int
    ) -> None:
        stream = TextStream(TOKENIZER, (stop,), min_tokens)
        out, counted = "", 0
        for number, token_id in enumerate(ids_of(text + stop)):
            new = stream.feed(token_id)
            assert "�" not in new
            out += new
            if number < min_tokens:
                counted = len(out)
            assert stop not in out[counted:]
        assert stream.stopped or len(out) + len(stream.finish()) == len(text + stop)
        assert (text + stop).startswith(out)


def word_tokenizer(*words: str) -> Any:
    """A tokenizer with whole texts as tokens, from id 1 on."""
    vocabulary = {UNKNOWN: 0, **{word: index for index, word in enumerate(words, start=1)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend)


class TestByteFallback:
    """Tokenizers that fall back to bytes decode a run of them as a whole, or not at all."""

    @pytest.fixture
    def tokenizer(self) -> Any:
        vocabulary = {UNKNOWN: 0, "▁word": 1, **{f"<0x{value:02X}>": value + 2 for value in range(256)}}
        backend = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token=UNKNOWN))
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        return transformers.PreTrainedTokenizerFast(tokenizer_object=backend)

    def test_a_newline_before_a_byte_that_is_no_character(self, tokenizer: Any) -> None:
        # The library's own DecodeStream raises here, which would end the engine for everybody.
        newline, lead = 2 + 0x0A, 2 + 0xE2
        assert deltas([1, newline, lead, 1], tokenizer=tokenizer) == ["word", "\n", "", "� word", ""]

    def test_words_are_joined_by_the_spaces_that_decoding_all_of_them_gives(self, tokenizer: Any) -> None:
        assert deltas([1, 1, 1], tokenizer=tokenizer) == ["word", " word", " word", ""]

    @given(
        data=st.lists(
            st.sampled_from([1, *(2 + value for value in (0x0A, 0x41, 0xE2, 0x82, 0xAC, 0xFF))]), max_size=40
        )
    )
    def test_no_ids_whatever_raise(self, data: list[int]) -> None:
        deltas(data, "word\n", tokenizer=TestByteFallback.tokenizer.__wrapped__(self))
