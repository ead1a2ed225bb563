"""Choosing tokens: the distribution, the draw from it, and the random numbers of a request."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from steering_engine.engine.sampling import ban, draw, token_probabilities, uniform


def probabilities(
    logits: list[float] | torch.Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> torch.Tensor:
    """The distribution of one row."""
    rows = torch.as_tensor(logits, dtype=torch.float64)[None]
    return token_probabilities(
        rows,
        torch.tensor([temperature], dtype=torch.float64),
        torch.tensor([top_k]),
        torch.tensor([top_p], dtype=torch.float64),
        torch.tensor([min_p], dtype=torch.float64),
    )[0]


def slow_probabilities(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> list[float]:
    """The same, token by token."""
    top = max(logits)
    weights = [math.exp((logit - top) / temperature) for logit in logits]
    if top_k:
        least = sorted(weights, reverse=True)[min(top_k, len(weights)) - 1]
        weights = [weight if weight >= least else 0.0 for weight in weights]
    weights = [weight / math.fsum(weights) for weight in weights]
    if top_p < 1:
        kept, mass = set(), 0.0
        for token in sorted(range(len(weights)), key=lambda token: -weights[token]):
            if kept and mass >= top_p:
                break
            kept.add(token)
            mass += weights[token]
        weights = [weight if token in kept else 0.0 for token, weight in enumerate(weights)]
    weights = [weight if weight >= min_p * max(weights) else 0.0 for weight in weights]
    return [weight / math.fsum(weights) for weight in weights]


distinct_logits = st.lists(st.integers(-400, 400), min_size=1, max_size=12, unique=True).map(
    lambda values: [value / 50 for value in values]
)


@given(
    distinct_logits,
    st.sampled_from([0.3, 0.7, 1.0, 2.5]),
    st.integers(0, 14),
    st.sampled_from([0.137, 0.5123, 0.9001, 1.0]),
    st.sampled_from([0.0, 0.0123, 0.2345, 0.7654, 1.0]),
)
@settings(max_examples=300)
def test_the_distribution_is_that_of_a_slow_reference(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    filters = (temperature, top_k, top_p, min_p)
    expected = torch.tensor(slow_probabilities(logits, *filters), dtype=torch.float64)
    torch.testing.assert_close(probabilities(logits, *filters), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (0.7, 0, 1.0, 0.0),
        (1.0, 5, 1.0, 0.0),
        (1.0, 0, 0.8, 0.0),
        (1.3, 20, 0.9, 0.0),
        (0.5, 1, 0.1, 0.0),
        (1.0, 0, 1.0, 0.05),
        (1.3, 20, 0.9, 0.2),
    ],
)
def test_the_distribution_is_that_of_the_librarys_own_warpers(
    temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    logits = 3 * torch.randn(1, 100, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scores = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    if min_p:
        scores = MinPLogitsWarper(min_p)(None, scores)
    expected = torch.softmax(scores, -1)[0]
    got = probabilities(logits[0], temperature, top_k, top_p, min_p)
    assert torch.equal(got > 0, expected > 0)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-15)


def test_rows_of_a_batch_have_settings_of_their_own() -> None:
    settings_of_rows = [
        (1.0, 0, 1.0, 0.0),
        (0.5, 3, 1.0, 0.0),
        (2.0, 0, 0.4, 0.0),
        (0.0, 2, 0.1, 0.3),
        (1.0, 0, 1.0, 0.2),
        (0.7, 9, 0.9, 0.1),
    ]
    logits = torch.randn(len(settings_of_rows), 50, generator=torch.Generator().manual_seed(0))
    temperature, top_k, top_p, min_p = (
        torch.tensor(column) for column in zip(*settings_of_rows, strict=True)
    )
    together = token_probabilities(logits, temperature, top_k, top_p, min_p)
    for row in range(len(settings_of_rows)):
        one = slice(row, row + 1)
        alone = token_probabilities(logits[one], temperature[one], top_k[one], top_p[one], min_p[one])
        assert torch.equal(together[one], alone)


def test_a_long_row_alone_has_the_bits_that_it_has_among_others() -> None:
    # So long that torch would split the sum of a single row over its threads.
    count, vocab = 3, 150_000
    logits = torch.randn(count, vocab, generator=torch.Generator().manual_seed(0))
    filters = (
        torch.ones(count),
        torch.full((count,), 50_000),
        torch.full((count,), 0.95),
        torch.full((count,), 1e-5),
    )
    together = token_probabilities(logits, *filters)
    for row in range(count):
        one = slice(row, row + 1)
        alone = token_probabilities(logits[one], *(values[one] for values in filters))
        assert torch.equal(together[one], alone)


def test_greedy_rows_tell_their_probabilities_at_temperature_1() -> None:
    logits = [0.3, 1.2, -0.5]
    filtered = probabilities(logits, temperature=0.0, top_k=1, top_p=0.1, min_p=0.9)
    assert torch.equal(filtered, probabilities(logits))


@pytest.mark.parametrize("kinds", [3, 40, 5000])
@pytest.mark.parametrize("top_p", [0.001, 0.5, 0.999])
def test_a_nucleus_of_any_size_is_what_sorting_the_vocabulary_gives(kinds: int, top_p: float) -> None:
    # From one token to nearly all of them, and with ties at its end, of which those with lower ids are in it.
    generator = torch.Generator().manual_seed(kinds)
    logits = torch.randint(0, kinds, (5000,), generator=generator) / kinds
    unfiltered = probabilities(logits)
    order = unfiltered.argsort(descending=True, stable=True)
    before = torch.cat([torch.zeros(1), unfiltered[order].cumsum(0)[:-1]])
    found = probabilities(logits, top_p=top_p)
    assert torch.equal(found.nonzero().flatten(), order[before < top_p].sort().values)
    torch.testing.assert_close(found, unfiltered * (found > 0) / unfiltered[found > 0].sum())


def test_ties_with_the_kth_token_are_kept() -> None:
    assert probabilities([2.0, 1.0, 1.0, 0.0], top_k=2).tolist()[1:] == pytest.approx(
        [0.2119, 0.2119, 0], abs=1e-4
    )


def test_the_nucleus_reaches_its_mass_and_keeps_at_least_one_token() -> None:
    quarters = [0.0] * 4
    assert probabilities(quarters, top_p=0.5).tolist() == [0.5, 0.5, 0, 0]
    assert probabilities(quarters, top_p=0.51).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    assert probabilities(quarters, top_p=1e-9).tolist() == [1, 0, 0, 0]


def test_min_p_keeps_tokens_of_exactly_that_share_and_renormalises() -> None:
    logits = torch.tensor([8.0, 4.0, 2.0, 1.0, 1.0], dtype=torch.float64).log()
    assert probabilities(logits, min_p=0.24).tolist() == pytest.approx([8 / 14, 4 / 14, 2 / 14, 0, 0])
    assert probabilities(logits, min_p=0.26).tolist() == pytest.approx([8 / 12, 4 / 12, 0, 0, 0])
    assert probabilities([1.0, 1.0, 0.0], min_p=1.0).tolist() == [0.5, 0.5, 0]


def test_min_p_looks_at_what_top_k_and_top_p_left() -> None:
    # Without the nucleus the third token would pass.
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
    assert probabilities(logits, top_p=0.6, min_p=0.5).tolist() == pytest.approx([4 / 7, 3 / 7, 0, 0])


def test_the_result_is_written_where_it_is_asked_for() -> None:
    logits, out = torch.randn(2, 9), torch.empty(2, 9, dtype=torch.float64)
    one = torch.ones(2)
    filters = (one, torch.tensor([0, 3]), one, 0 * one)
    found = token_probabilities(logits, *filters, out=out)
    assert found is out
    assert torch.equal(out, token_probabilities(logits, *filters))


def test_half_precision_logits_give_double_precision_probabilities() -> None:
    found = token_probabilities(
        torch.randn(2, 9, dtype=torch.bfloat16),
        torch.ones(2),
        torch.zeros(2, dtype=torch.long),
        torch.ones(2),
        torch.zeros(2),
    )
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.sum(-1), torch.ones(2, dtype=torch.float64))


class TestBan:
    def test_the_rest_is_renormalised(self) -> None:
        given_ = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
        assert ban(given_, torch.tensor([0])).tolist() == [0, 0.5, 0.5]
        assert given_.tolist() == [0.5, 0.25, 0.25]

    def test_when_nothing_else_could_be_drawn_it_is_unchanged(self) -> None:
        certain = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
        assert torch.equal(ban(certain, torch.tensor([1])), certain)


def drawn(distribution: list[float], number: float, temperature: float = 1.0) -> tuple[int, float]:
    ids, logprobs = draw(
        torch.tensor([distribution], dtype=torch.float64),
        torch.tensor([temperature]),
        torch.tensor([number], dtype=torch.float64),
    )
    return int(ids[0]), float(logprobs[0])


class TestDraw:
    @pytest.mark.parametrize(
        ("number", "token"), [(0.0, 0), (0.2499, 0), (0.25, 2), (0.7499, 2), (0.75, 3), (1 - 2**-52, 3)]
    )
    def test_it_inverts_the_cumulative_distribution(self, number: float, token: int) -> None:
        assert drawn([0.25, 0.0, 0.5, 0.25, 0.0], number)[0] == token

    @given(
        st.lists(st.integers(0, 5), min_size=1, max_size=9).filter(any),
        st.integers(0, 2**52 - 1).map(lambda bits: bits / 2**52),
    )
    def test_a_token_of_probability_zero_is_never_drawn(self, weights: list[int], number: float) -> None:
        distribution = [weight / sum(weights) for weight in weights]
        token, logprob = drawn(distribution, number)
        assert distribution[token] > 0
        assert logprob == pytest.approx(math.log(distribution[token]), rel=1e-6)
        below = math.fsum(distribution[:token])
        assert below - 1e-12 <= number <= below + distribution[token] + 1e-12

    def test_greedy_takes_the_most_likely_token_and_the_first_of_equals(self) -> None:
        assert drawn([0.2, 0.4, 0.4], 0.99, temperature=0.0) == (1, pytest.approx(math.log(0.4)))

    def test_the_log_probability_is_that_of_the_distribution_drawn_from(self) -> None:
        distribution = probabilities([1.0, 2.0, 3.0], temperature=0.5, top_k=2)
        _, logprob = drawn(distribution.tolist(), 0.999)
        assert logprob == pytest.approx(math.log(distribution[2]), rel=1e-6)


class TestUniform:
    seeds = st.integers(-(2**63), 2**63 - 1)
    step = st.integers(0, 2**31)

    @given(seeds, step)
    def test_it_is_in_the_unit_interval_and_never_one(self, seed: int, step: int) -> None:
        assert 0 <= uniform(seed, step) < 1

    @given(seeds, step)
    def test_it_depends_on_seed_and_step_alone(self, seed: int, step: int) -> None:
        first = uniform(seed, step)
        uniform(seed + 1 if seed < 0 else seed - 1, step)
        assert uniform(seed, step) == first

    def test_no_two_steps_and_no_two_seeds_share_a_number(self) -> None:
        numbers = [uniform(seed, step) for seed in range(-50, 50) for step in range(100)]
        assert len(set(numbers)) == len(numbers)

    def test_it_never_changes_between_versions(self) -> None:
        # A seed in a paper, a log or a ledger must give the same tokens next year.
        assert [uniform(0, 0), uniform(0, 1), uniform(-1, 0)] == [
            0.0564663990004608,
            0.44008326622012284,
            0.568720775639266,
        ]


def test_draws_follow_the_probabilities() -> None:
    expected = probabilities([0.0, 1.0, 2.0, 0.5, -1.0], temperature=0.9)
    count = 20_000
    numbers = torch.tensor([uniform(7, step) for step in range(count)], dtype=torch.float64)
    ids, _ = draw(expected.expand(count, -1), torch.ones(count), numbers)
    observed = torch.bincount(ids, minlength=5).double()
    chi_square = float(((observed - count * expected) ** 2 / (count * expected)).sum())
    assert chi_square < 13.28  # the 99 % quantile at 4 degrees of freedom; the draws are fixed by the seed
