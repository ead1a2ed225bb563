"""What is done to logits before a token is drawn, and the alternatives that are told: pure functions, exact results."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MinNewTokensLengthLogitsProcessor, RepetitionPenaltyLogitsProcessor

from steering_engine.engine.sampling import (
    Places,
    add_bias,
    hold_back,
    most_likely,
    penalise_occurrences,
    penalise_repetition,
)

LOGITS = torch.tensor([[1.0, -2.0, 0.0, 4.0], [0.5, 0.25, -0.5, 8.0]])


def at(*entries: tuple[int, int]) -> Places:
    rows, ids = zip(*entries, strict=True)
    return Places(torch.tensor(rows), torch.tensor(ids))


class TestBias:
    def test_it_is_added_where_it_belongs_and_nowhere_else(self) -> None:
        biased = add_bias(LOGITS, at((0, 1), (1, 3)), torch.tensor([5.0, -0.75]))
        assert biased.tolist() == [[1.0, 3.0, 0.0, 4.0], [0.5, 0.25, -0.5, 7.25]]

    def test_the_logits_given_stay_as_they_are(self) -> None:
        given_ = LOGITS.clone()
        add_bias(given_, at((0, 0)), torch.tensor([1.0]))
        penalise_repetition(given_, at((0, 0)), torch.tensor([2.0]))
        penalise_occurrences(given_, at((0, 0)), torch.tensor([1]), torch.tensor([1.0]), torch.tensor([1.0]))
        hold_back(given_, at((0, 0)))
        assert torch.equal(given_, LOGITS)


class TestRepetition:
    def test_positive_logits_are_divided_and_others_multiplied(self) -> None:
        places = at((0, 0), (0, 1), (0, 2), (1, 3))
        penalised = penalise_repetition(LOGITS, places, torch.tensor([2.0, 2.0, 2.0, 0.5]))
        assert penalised.tolist() == [[0.5, -4.0, 0.0, 4.0], [0.5, 0.25, -0.5, 16.0]]

    @pytest.mark.parametrize("penalty", [0.7, 1.0, 1.2, 3.0])
    def test_it_is_that_of_the_library_to_the_bit(self, penalty: float) -> None:
        logits = torch.randn(1, 100, generator=torch.Generator().manual_seed(0))
        history = torch.tensor([[3, 7, 7, 50, 3, 99]])
        expected = RepetitionPenaltyLogitsProcessor(penalty)(history, logits)
        ids = history.unique()
        places = Places(torch.zeros_like(ids), ids)
        assert torch.equal(penalise_repetition(logits, places, torch.full((len(ids),), penalty)), expected)


class TestOccurrences:
    def test_presence_is_taken_off_once_and_frequency_for_every_time(self) -> None:
        penalised = penalise_occurrences(
            LOGITS,
            at((0, 0), (0, 3), (1, 1)),
            torch.tensor([1, 3, 2]),
            torch.tensor([0.5, 0.5, 0.0]),
            torch.tensor([0.25, 0.25, -1.0]),
        )
        assert penalised.tolist() == [[0.25, -2.0, 0.0, 2.75], [0.5, 2.25, -0.5, 8.0]]

    def test_tokens_that_the_completion_does_not_hold_keep_their_bits(self) -> None:
        places = at((0, 0), (0, 1), (0, 2), (0, 3))
        counts = torch.zeros(4, dtype=torch.long)
        assert torch.equal(
            penalise_occurrences(LOGITS, places, counts, torch.full((4,), 0.1), torch.full((4,), 0.3)), LOGITS
        )


class TestHoldingBack:
    def test_those_tokens_have_no_probability(self) -> None:
        held = hold_back(LOGITS, at((0, 3), (1, 0), (1, 3)))
        assert held.softmax(-1)[0, 3] == held.softmax(-1)[1, 0] == held.softmax(-1)[1, 3] == 0
        assert torch.equal(held[:, 1:3], LOGITS[:, 1:3])

    def test_it_is_that_of_the_library(self) -> None:
        processor = MinNewTokensLengthLogitsProcessor(2, 5, [1, 3])
        expected = processor(torch.zeros(1, 4, dtype=torch.long), LOGITS[:1])
        assert torch.equal(hold_back(LOGITS[:1], at((0, 1), (0, 3))), expected)


def rows_of(*probabilities: list[float]) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64)


def listed(probabilities: list[float], count: int) -> list[tuple[int, float]]:
    (ids,), (logprobs,) = (found.tolist() for found in most_likely(rows_of(probabilities), count))
    return [(token, value) for token, value in zip(ids, logprobs, strict=True) if value > -math.inf]


class TestMostLikely:
    def test_the_most_likely_comes_first_with_its_log_probability(self) -> None:
        assert listed([0.125, 0.5, 0.0, 0.25, 0.125], 2) == [
            (1, pytest.approx(math.log(0.5), rel=1e-6)),
            (3, pytest.approx(math.log(0.25), rel=1e-6)),
        ]

    def test_of_equals_the_lower_id_comes_first(self) -> None:
        quarter = [0.25, 0.0, 0.25, 0.25, 0.25]
        assert [token for token, _ in listed(quarter, 3)] == [0, 2, 3]

    def test_tokens_that_cannot_be_drawn_are_no_alternatives(self) -> None:
        assert [token for token, _ in listed([0.0, 0.75, 0.0, 0.25], 3)] == [1, 3]

    def test_there_are_no_more_than_there_are_tokens(self) -> None:
        assert listed([1.0], 5) == [(0, 0.0)]

    @given(
        st.integers(1, 12).flatmap(
            lambda vocab: st.lists(
                st.lists(st.integers(0, 4), min_size=vocab, max_size=vocab).filter(any),
                min_size=1,
                max_size=4,
            )
        ),
        st.integers(1, 14),
    )
    def test_it_is_what_sorting_gives_and_no_row_knows_of_the_others(
        self, rows: list[list[int]], count: int
    ) -> None:
        distributions = [[weight / sum(weights) for weight in weights] for weights in rows]
        ids, logprobs = most_likely(torch.tensor(distributions, dtype=torch.float64), count)
        for number, distribution in enumerate(distributions):
            possible = [token for token, one in enumerate(distribution) if one]
            expected = sorted(possible, key=lambda token: -distribution[token])[:count]
            assert (
                listed(distribution, count)
                == list(zip(ids[number].tolist(), logprobs[number].tolist(), strict=True))[: len(expected)]
            )
            assert ids[number, : len(expected)].tolist() == expected
            assert logprobs[number, : len(expected)].exp().tolist() == pytest.approx(
                [distribution[token] for token in expected], rel=1e-6
            )
