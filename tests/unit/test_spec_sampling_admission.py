"""Admission of sampling: every number has its range, and what does not fit the model is refused."""

from __future__ import annotations

import math

import pytest

from steering_spec import GenerationSpec, request_violations
from steering_spec import limits as api
from tests.support.admission import MODEL, sampled, told, with_facts

BIG = api.INT32_MAX + 1

ALONE: list[tuple[str, GenerationSpec, str]] = [
    ("temperature below 0", sampled(temperature=-0.1), "temperature"),
    ("temperature above the limit", sampled(temperature=api.MAX_TEMPERATURE + 1), "temperature"),
    ("temperature NaN", sampled(temperature=math.nan), "temperature"),
    ("top_p 0", sampled(top_p=0.0), "top_p"),
    ("top_p above 1", sampled(top_p=1.01), "top_p"),
    ("top_p NaN", sampled(top_p=math.nan), "top_p"),
    ("min_p below 0", sampled(min_p=-0.01), "min_p"),
    ("min_p above 1", sampled(min_p=1.01), "min_p"),
    ("min_p NaN", sampled(min_p=math.nan), "min_p"),
    ("a banned id below 0", sampled(banned_first_ids=(3, -1)), "banned_first_ids[1]"),
    ("too many banned ids", sampled(banned_first_ids=tuple(range(65))), "banned_first_ids"),
    ("top_k 0", sampled(top_k=0), "top_k"),
    ("top_k beyond 32 bits", sampled(top_k=BIG), "top_k"),
    ("max_tokens 0", sampled(max_tokens=0), "max_token_count"),
    ("max_tokens beyond 32 bits", sampled(max_tokens=BIG), "max_token_count"),
    ("a seed beyond 64 bits", sampled(seed=2**63), "seed"),
    ("a seed below 64 bits", sampled(seed=-(2**63) - 1), "seed"),
    ("too many stops", sampled(stop=("x",) * (api.MAX_STOP_SEQUENCES + 1)), "stop_sequences"),
    ("an empty stop", sampled(stop=("x", "")), "stop_sequences[1]"),
    ("a long stop", sampled(stop=("x" * 257,)), "stop_sequences[0]"),
    ("no completion", sampled(n=0), "completion_count"),
    ("too many completions", sampled(n=129), "completion_count"),
    ("a last seed beyond 64 bits", sampled(n=3, seed=2**63 - 2), "seed"),
    ("a negative minimum", sampled(min_tokens=-1), "min_token_count"),
    ("a minimum beyond 32 bits", sampled(min_tokens=BIG), "min_token_count"),
    ("a minimum above the maximum", sampled(min_tokens=5, max_tokens=4), "min_token_count"),
    ("a repetition penalty of 0", sampled(repetition_penalty=0.0), "repetition_penalty"),
    ("too much repetition penalty", sampled(repetition_penalty=100.1), "repetition_penalty"),
    ("a repetition penalty NaN", sampled(repetition_penalty=math.nan), "repetition_penalty"),
    ("too much presence penalty", sampled(presence_penalty=100.1), "presence_penalty"),
    ("a presence penalty NaN", sampled(presence_penalty=math.nan), "presence_penalty"),
    ("too little frequency penalty", sampled(frequency_penalty=-100.1), "frequency_penalty"),
    ("an infinite frequency penalty", sampled(frequency_penalty=math.inf), "frequency_penalty"),
    ("a bias on a negative id", sampled(logit_bias=((1, 0.0), (-1, 0.0))), "logit_bias[-1]"),
    ("a bias beyond the limit", sampled(logit_bias=((8, -1000.1),)), "logit_bias[8]"),
    ("a bias NaN", sampled(logit_bias=((8, math.nan),)), "logit_bias[8]"),
    ("two biases on one id", sampled(logit_bias=((8, 1.0), (8, 2.0))), "logit_bias[8]"),
    ("too many biases", sampled(logit_bias=tuple((i, 1.0) for i in range(1025))), "logit_bias"),
    ("a negative number of alternatives", sampled(top_logprobs=-1), "top_logprob_count"),
    ("too many alternatives", sampled(top_logprobs=21), "top_logprob_count"),
]

WITH_FACTS: list[tuple[str, GenerationSpec, str]] = [
    ("a banned id that is none of the model's", sampled(banned_first_ids=(0, 100)), "banned_first_ids[1]"),
    ("a bias on an id that is none of the model's", sampled(logit_bias=((100, 1.0),)), "logit_bias[100]"),
    ("more tokens than fit", sampled(max_tokens=60), "max_token_count"),
    ("a minimum above the server's own maximum", sampled(min_tokens=17), "min_token_count"),
]


@pytest.mark.parametrize(("spec", "field"), [case[1:] for case in ALONE], ids=[case[0] for case in ALONE])
def test_a_fault_of_sampling_alone_is_found_without_any_facts(spec: GenerationSpec, field: str) -> None:
    assert told(request_violations(spec)) == [(f"sampling.{field}", "INVALID")]


@pytest.mark.parametrize(
    ("spec", "field"), [case[1:] for case in WITH_FACTS], ids=[case[0] for case in WITH_FACTS]
)
def test_what_does_not_fit_the_model_is_found_with_its_facts(spec: GenerationSpec, field: str) -> None:
    assert request_violations(spec) == []
    assert told(with_facts(spec)) == [(f"sampling.{field}", "INVALID")]


@pytest.mark.parametrize(
    "spec",
    [
        sampled(
            temperature=0.0,
            top_p=1.0,
            min_p=1.0,
            banned_first_ids=tuple(range(36, 100)),
            top_k=1,
            max_tokens=59,
            seed=-(2**63),
            stop=("x" * 256,) * 16,
            n=128,
            min_tokens=59,
            repetition_penalty=100.0,
            presence_penalty=-100.0,
            frequency_penalty=100.0,
            logit_bias=((0, -1000.0), (99, 1000.0)),
            top_logprobs=20,
        ),
        sampled(n=2, seed=2**63 - 2),
        sampled(n=1, seed=2**63 - 1),
        sampled(min_tokens=16, repetition_penalty=0.01),
    ],
)
def test_sampling_at_its_limits_passes(spec: GenerationSpec) -> None:
    assert request_violations(spec) == []
    assert with_facts(spec) == []


def test_as_many_biases_as_are_allowed_pass() -> None:
    assert request_violations(sampled(logit_bias=tuple((i, 1.0) for i in range(1024)))) == []


def test_a_minimum_is_held_against_what_the_context_leaves_room_for() -> None:
    spec = sampled(min_tokens=10)
    assert request_violations(spec, MODEL, None, (1,) * 54) == []
    (found,) = request_violations(spec, MODEL, None, (1,) * 55)
    assert found.description == "10 tokens can't be reached: at most 9 are generated"


def test_a_wrong_seed_says_which_would_be_right() -> None:
    (found,) = request_violations(sampled(n=128, seed=2**63 - 1))
    assert f"at most {2**63 - 128} is right" in found.description
    assert request_violations(sampled(n=128, seed=2**63 - 128)) == []
