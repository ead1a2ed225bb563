"""Sampling a batch: every row from its own request's distribution, whatever the others ask for."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steering_engine.engine.base import EngineRequest, Sampling
from steering_engine.engine.occurrences import Occurrences
from steering_engine.engine.run import Run
from steering_engine.engine.sampler import sample_batch
from steering_engine.engine.text import TextStream
from steering_engine.errors import NotFiniteError
from steering_spec import Token, TokenLogprob
from tests.support.models import byte_tokenizer

TOKENIZER = byte_tokenizer()
VOCAB = 12
EOS = (1, 3)
NOBODY = asyncio.new_event_loop()
NOBODY.close()  # nobody waits for these runs
PLAIN = Sampling(temperature=0.0, top_p=1.0, top_k=0, max_tokens=50, seed=0)


def run_of(
    sampling: Sampling, completion: Sequence[int] = (), prompt: Sequence[int] = (5, 6), **request: Any
) -> Run:
    """A run whose completion holds these tokens already."""
    text = TextStream(TOKENIZER, sampling.stop, sampling.min_tokens)
    run = Run(
        EngineRequest("mine", tuple(prompt), sampling, **request), "mine", text, NOBODY, asyncio.Event()
    )
    for token_id in completion:
        run.accept(Token(token_id, 0.0), is_eos=False)
    return run


def logits_of(rows: int = 1, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def sampled(logits: torch.Tensor, *runs: Run) -> list[tuple[int, float]]:
    ids, logprobs = sample_batch(logits, runs, EOS)
    return list(zip(ids.tolist(), logprobs.tolist(), strict=True))


def distribution(logits: torch.Tensor, run: Run) -> dict[int, float]:
    """Log-probability of every token that could be drawn."""
    sampling = replace(run.request.sampling, top_logprobs=VOCAB)
    run.request = replace(run.request, sampling=sampling)
    sample_batch(logits, [run], EOS)
    return {one.id: one.logprob for one in run.alternatives}


def expected(adjusted: list[float]) -> dict[int, float]:
    logprobs = torch.tensor(adjusted, dtype=torch.float32).double().log_softmax(-1)
    return {
        token: pytest.approx(value, abs=1e-6)
        for token, value in enumerate(logprobs.tolist())
        if value > -torch.inf
    }


class TestOrder:
    def test_bias_then_repetition_then_occurrences(self) -> None:
        sampling = replace(
            PLAIN,
            logit_bias=((5, 2.0), (7, -4.0)),
            repetition_penalty=2.0,
            presence_penalty=0.5,
            frequency_penalty=0.25,
        )
        logits = logits_of()
        adjusted = logits[0].tolist()
        adjusted[5] += 2.0
        adjusted[7] += -4.0
        counts = Counter([7, 7, 9])
        for token in {5, 6} | set(counts):
            adjusted[token] = adjusted[token] / 2 if adjusted[token] > 0 else adjusted[token] * 2
            adjusted[token] -= counts[token] * 0.25 + bool(counts[token]) * 0.5
        assert distribution(logits, run_of(sampling, [7, 9, 7])) == expected(adjusted)

    def test_a_bias_cannot_bring_back_an_end_that_is_held_back(self) -> None:
        sampling = replace(PLAIN, min_tokens=1, logit_bias=((1, 100.0), (3, 90.0), (4, 80.0)))
        assert sampled(logits_of(), run_of(sampling))[0][0] == 4
        assert sampled(logits_of(), run_of(sampling, [8]))[0][0] == 1

    def test_temperature_and_filters_see_the_adjusted_logits(self) -> None:
        sampling = replace(PLAIN, temperature=0.5, top_k=1, logit_bias=((8, 50.0),))
        assert sampled(logits_of(), run_of(sampling)) == [(8, 0.0)]

    def test_greedy_takes_the_argmax_of_the_penalised_logits(self) -> None:
        logits = torch.tensor([[0.0, 0.0, 0.0, 0.0, 3.0, 2.5, 1.0] + [0.0] * 5])
        assert sampled(logits, run_of(PLAIN, [4]))[0][0] == 4
        assert sampled(logits, run_of(replace(PLAIN, presence_penalty=0.75), [4]))[0][0] == 5
        assert sampled(logits, run_of(replace(PLAIN, frequency_penalty=0.75), [4, 5, 5]))[0][0] == 4
        assert sampled(logits, run_of(replace(PLAIN, repetition_penalty=4.0), [4], [5]))[0][0] == 6

    def test_the_last_of_several_biases_of_a_token_counts(self) -> None:
        once, twice = (replace(PLAIN, logit_bias=bias) for bias in (((8, 1.0),), ((8, 5.0), (8, 1.0))))
        assert distribution(logits_of(), run_of(once)) == distribution(logits_of(), run_of(twice))


class TestWhoCounts:
    def test_repetition_counts_the_prompt_and_the_completion(self) -> None:
        sampling = replace(PLAIN, repetition_penalty=1.5)
        free = expected(logits_of()[0].tolist())
        assert distribution(logits_of(), run_of(sampling, prompt=[5])) != free
        assert distribution(logits_of(), run_of(sampling, [5], prompt=[6])) == distribution(
            logits_of(), run_of(sampling, [6, 5, 5], prompt=[6, 6])
        )

    def test_presence_and_frequency_count_the_completion_alone(self) -> None:
        sampling = replace(PLAIN, presence_penalty=1.0, frequency_penalty=1.0)
        free = expected(logits_of()[0].tolist())
        assert distribution(logits_of(), run_of(sampling, prompt=[5, 5, 6])) == free
        assert distribution(logits_of(), run_of(sampling, [5])) != free

    @pytest.mark.parametrize(("held", "step"), [(True, 0), (True, 1), (False, 2)])
    def test_ends_are_held_back_before_min_tokens(self, held: bool, step: int) -> None:
        run = run_of(replace(PLAIN, min_tokens=2), [8] * step)
        assert set(distribution(logits_of(), run)) == set(range(VOCAB)) - (set(EOS) if held else set())

    def test_a_request_that_goes_through_ends_draws_them_at_any_step(self) -> None:
        run = run_of(replace(PLAIN, min_tokens=2, stop_at_eos=False))
        assert len(distribution(logits_of(), run)) == VOCAB

    def test_an_end_that_the_model_has_no_logit_for_is_nothing_to_hold_back(self) -> None:
        ids, _ = sample_batch(logits_of(), [run_of(replace(PLAIN, min_tokens=2))], (VOCAB + 3,))
        assert int(ids[0]) < VOCAB


class TestAlternatives:
    def test_they_are_those_of_the_distribution_that_the_token_was_drawn_from(self) -> None:
        run = run_of(replace(PLAIN, temperature=0.7, top_k=4, top_logprobs=4, seed=5))
        (drawn,) = sampled(logits_of(), run)
        best = (logits_of()[0].double() / 0.7).softmax(-1).topk(4)
        logs = (best.values / best.values.sum()).log()
        assert [one.id for one in run.alternatives] == best.indices.tolist()
        assert [one.logprob for one in run.alternatives] == pytest.approx(logs.tolist(), abs=1e-6)
        assert drawn in [(one.id, one.logprob) for one in run.alternatives]

    def test_of_a_filtered_distribution_there_are_only_those_that_could_be_drawn(self) -> None:
        run = run_of(replace(PLAIN, temperature=1.0, top_k=2, top_logprobs=5))
        sampled(logits_of(), run)
        assert len(run.alternatives) == 2

    def test_a_banned_first_token_is_no_alternative(self) -> None:
        run = run_of(replace(PLAIN, top_logprobs=VOCAB), banned_first_ids=(2, 4))
        sampled(logits_of(), run)
        assert {one.id for one in run.alternatives} == set(range(VOCAB)) - {2, 4}

    @pytest.mark.parametrize("temperature", [0.04, 0.25, 4.0])
    @pytest.mark.parametrize("top_k", [0, 1])
    def test_where_filters_leave_banned_tokens_alone_the_temperature_still_counts(
        self, temperature: float, top_k: int
    ) -> None:
        logits = torch.full((1, VOCAB), -40.0)
        logits[0, :3] = torch.tensor([50.0, 10.0, 9.0])
        run = run_of(replace(PLAIN, temperature=temperature, top_k=top_k), banned_first_ids=(0,))
        rest = (logits[0].double() / temperature).index_fill(-1, torch.tensor([0]), -torch.inf)
        found = distribution(logits, run)
        for token, logprob in enumerate(rest.log_softmax(-1).tolist()):
            if logprob > -700:  # less is 0 in 64 bits
                assert found[token] == pytest.approx(logprob, abs=1e-5)

    @pytest.mark.parametrize(
        ("equal", "top_p", "kept"), [(5, 0.6, 3), (5, 0.2, 1), (10, 0.1, 1), (20, 0.05, 1)]
    )
    def test_a_nucleus_is_as_small_as_its_setting_in_64_bits_says(
        self, equal: int, top_p: float, kept: int
    ) -> None:
        logits = torch.full((1, VOCAB), -torch.inf)
        logits[0, :equal] = 0
        assert len(distribution(logits, run_of(replace(PLAIN, temperature=1.0, top_p=top_p)))) == kept

    @pytest.mark.parametrize("setting", [{"top_p": 1e-46}, {"temperature": 1e-46}, {"temperature": 5e-324}])
    def test_the_least_settings_take_the_most_likely_token(self, setting: dict[str, float]) -> None:
        logits = logits_of()
        run = run_of(replace(PLAIN, **{"temperature": 1.0, **setting}))
        assert sampled(logits, run) == [(int(logits.argmax()), 0.0)]

    def test_a_greedy_token_is_the_first_of_its_alternatives(self) -> None:
        run = run_of(replace(PLAIN, top_logprobs=1))
        ((token, logprob),) = sampled(logits_of(), run)
        assert run.alternatives == (TokenLogprob(token, logprob),)

    def test_without_being_asked_for_there_are_none(self) -> None:
        run = run_of(PLAIN)
        sampled(logits_of(), run)
        assert run.alternatives == ()


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    top_p=st.sampled_from([0.8, 1.0]),
    top_k=st.sampled_from([0, 3]),
    max_tokens=st.just(50),
    seed=st.integers(0, 1000),
    min_p=st.sampled_from([0.0, 0.1]),
    min_tokens=st.integers(0, 4),
    repetition_penalty=st.sampled_from([0.8, 1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.3]),
    frequency_penalty=st.sampled_from([-0.2, 0.0]),
    logit_bias=st.sampled_from([(), ((4, 1.5), (9, -2.0))]),
    top_logprobs=st.sampled_from([0, 3]),
)
completions = st.lists(st.integers(0, VOCAB - 1), max_size=8)


@given(st.lists(st.tuples(samplings, completions), min_size=1, max_size=7), st.integers(0, 99))
@settings(max_examples=200)
def test_a_row_has_the_bits_that_it_has_alone(requests: list[tuple[Sampling, list[int]]], seed: int) -> None:
    logits = logits_of(len(requests), seed)
    before = logits.clone()
    together = [run_of(sampling, completion) for sampling, completion in requests]
    found = sampled(logits, *together)
    assert torch.equal(logits, before)
    for row, (sampling, completion) in enumerate(requests):
        alone = run_of(sampling, completion)
        assert sampled(logits[row : row + 1], alone) == [found[row]]
        assert alone.alternatives == together[row].alternatives


@pytest.mark.parametrize("what", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    "settings_of_row",
    [PLAIN, replace(PLAIN, temperature=1.0), replace(PLAIN, temperature=1.0, top_k=3, top_p=0.9, min_p=0.1)],
)
def test_a_row_that_is_not_finite_fails_its_own_run_alone(what: float, settings_of_row: Sampling) -> None:
    logits = logits_of(3)
    logits[1] = what
    sampling = replace(settings_of_row, top_logprobs=2, repetition_penalty=1.2)
    runs = [run_of(sampling, [4]) for _ in range(3)]
    drawn = sampled(logits, *runs)
    assert [run.failed for run in runs] == [False, True, False]
    assert drawn[0] in [(one.id, one.logprob) for one in runs[0].alternatives]
    assert drawn[1][0] in range(VOCAB)
    with pytest.raises(NotFiniteError, match="the logits of token 1 are not finite"):
        runs[1].take()


def test_rows_of_a_large_vocabulary_have_the_bits_that_they_have_alone() -> None:
    # So large that not all rows are looked at together.
    settings_of_rows = [
        PLAIN,
        replace(PLAIN, temperature=1.0, top_logprobs=3),
        replace(PLAIN, temperature=0.7, top_p=0.9),
        replace(PLAIN, temperature=0.7, top_k=50, presence_penalty=0.5),
        replace(PLAIN, temperature=1.3, min_p=0.01),
    ]
    logits = torch.randn(5, 140_000, generator=torch.Generator().manual_seed(0))
    runs = [run_of(one, [7]) for one in settings_of_rows]
    found = sampled(logits, *runs)
    for row, one in enumerate(settings_of_rows):
        assert sampled(logits[row : row + 1], run_of(one, [7])) == [found[row]]


class TestOccurrences:
    def test_tokens_are_counted_as_they_come(self) -> None:
        found = Occurrences([9, 5, 9])
        for token_id in (4, 8, 4):
            ids = found.completion_ids()
            found.add(token_id)
            assert len(ids) <= len(found.completion_ids())
        assert found.prompt_ids.tolist() == [5, 9]
        assert found.completion_ids().tolist() == [4, 8]
        assert found.completion_counts().tolist() == [2, 1]

    def test_only_requests_with_penalties_count(self) -> None:
        assert len(run_of(PLAIN, [4, 4]).occurrences.completion_ids()) == 0
        run = run_of(replace(PLAIN, frequency_penalty=0.1), [4])
        assert run.occurrences.completion_ids().tolist() == [4]
        assert len(run.occurrences.prompt_ids) == 0
