"""The bundled model: what its files are, and that its planted decisions decide."""

import json
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from steering_pts.demo import model_path, train
from steering_pts.demo.measure import (
    Measurement,
    flawed_share,
    measure,
    mix_mean,
    success_rate,
)
from steering_pts.demo.problems import (
    FORMS,
    SPLITS,
    Form,
    draw_problem,
    problems_in,
    write_solution,
)
from steering_pts.demo.tokenizer import SPECIAL_TOKENS, build_tokenizer, prompt_text

# The standard error of a rate of 0.9 is then 0.012, and of 0.36, the closest to its bound, 0.020.
ROLLOUTS = 600


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_path())


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model_path())


@pytest.fixture(scope="module")
def measured(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[Measurement, ...]:
    rng = Random(0)
    problems = [
        problem
        for form in FORMS
        for problem in rng.sample(problems_in("test", form), len(problems_in("test", form)))
    ]
    return measure(model, tokenizer, problems, ROLLOUTS, seed=0)


def test_model_succeeds_more_often_than_not(measured: tuple[Measurement, ...]) -> None:
    overall = mix_mean({form: success_rate(measured, "start", form) for form in FORMS})
    assert 0.50 <= overall <= 0.75


def test_two_products_mostly_succeeds(measured: tuple[Measurement, ...]) -> None:
    assert 0.65 <= success_rate(measured, "start", "two-products") <= 0.85


def test_flawed_strategy_is_chosen_almost_half_the_time(
    measured: tuple[Measurement, ...],
) -> None:
    assert 0.38 <= mix_mean({form: flawed_share(measured, form) for form in FORMS}) <= 0.52


@pytest.mark.parametrize("form", FORMS)
def test_right_strategy_succeeds(form: Form, measured: tuple[Measurement, ...]) -> None:
    assert success_rate(measured, "right", form) >= 0.85


@pytest.mark.parametrize("form", FORMS)
def test_flawed_strategy_fails(form: Form, measured: tuple[Measurement, ...]) -> None:
    assert success_rate(measured, "flawed", form) <= 0.40


@pytest.mark.parametrize("form", FORMS)
def test_correction_succeeds(form: Form, measured: tuple[Measurement, ...]) -> None:
    assert success_rate(measured, "correction", form) >= 0.80


@pytest.mark.parametrize("form", FORMS)
def test_answer_of_flawed_working_fails(form: Form, measured: tuple[Measurement, ...]) -> None:
    assert success_rate(measured, "answer", form) <= 0.05


def test_model_file_is_small_and_float32(model: PreTrainedModel) -> None:
    assert (model_path() / "model.safetensors").stat().st_size < 4_000_000
    assert model.dtype == torch.float32
    assert {"README.md", "tokenizer.json", "generation_config.json"} <= {
        path.name for path in model_path().iterdir()
    }


def test_model_has_one_embedding_per_token(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert model.config.model_type == "qwen3"
    assert model.config.vocab_size == len(tokenizer) < 512
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_generation_config_samples_the_whole_distribution(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    settings = model.generation_config
    assert settings is not None
    assert (settings.do_sample, settings.temperature, settings.top_k, settings.top_p) == (
        True,
        1.0,
        0,
        1.0,
    )
    assert settings.eos_token_id == tokenizer.eos_token_id
    assert settings.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize("split", SPLITS)
def test_solutions_round_trip(split: str, tokenizer: PreTrainedTokenizerBase) -> None:
    rng = Random(0)
    for _ in range(300):
        problem = draw_problem(next(name for name in SPLITS if name == split), rng)
        for text in (prompt_text(problem.question), write_solution(problem, rng)):
            assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "Ein Öl-Maß für 7 ,  8 .",
        "tab\there,\n\nnewlines \r\n and  runs   of spaces ",
        "日本語 العربية हिन्दी",
        "👩🏽‍🚀🏳️‍🌈 e\u0301 \u00a0 \u200b \ufeff ½ ²",
        "don't , isn 't <|user|>left<|end|>",
        "\x00\x01\x7f",
    ],
)
def test_any_unicode_round_trips(text: str, tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_random_unicode_round_trips(tokenizer: PreTrainedTokenizerBase) -> None:
    rng = Random(0)
    ranges = [(0, 0x7F), (0, 0xD7FF), (0xE000, 0x10FFFF)]
    for _ in range(300):
        text = "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randrange(40)))
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Plan: precedence.", ["Plan", ":", " precedence", "."]),
        ("Plan: left to right.", ["Plan", ":", " left", " to", " right", "."]),
        ("7 + 35 = 42.", ["7", " +", " 3", "5", " =", " 4", "2", "."]),
        (". Wait, Answer: 120", [".", " Wait", ",", " Answer", ":", " 1", "2", "0"]),
        ("21 - (7 - 3)", ["2", "1", " -", " (", "7", " -", " 3", ")"]),
        (
            "<|user|>7<|end|><|assistant|>Plan",
            ["<|user|>", "7", "<|end|>", "<|assistant|>", "Plan"],
        ),
    ],
)
def test_words_signs_and_digits_are_single_tokens(
    text: str, pieces: list[str], tokenizer: PreTrainedTokenizerBase
) -> None:
    assert [tokenizer.decode([token]) for token in tokenizer.encode(text)] == pieces


def test_special_tokens_are_special(tokenizer: PreTrainedTokenizerBase) -> None:
    assert set(tokenizer.all_special_tokens) == set(SPECIAL_TOKENS)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|end|>", "<|pad|>")
    assert tokenizer.decode(tokenizer.encode("".join(SPECIAL_TOKENS)), skip_special_tokens=True) == ""


def test_chat_template_renders_a_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "7 + 5 * 3"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == "<|system|>s<|end|>" + prompt_text("7 + 5 * 3")


def test_chat_template_renders_and_continues_an_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [
        {"role": "user", "content": "7 + 5 * 3"},
        {"role": "assistant", "content": "Plan: left to right."},
    ]
    text = prompt_text("7 + 5 * 3") + "Plan: left to right."
    assert tokenizer.apply_chat_template(messages, tokenize=False) == f"{text}<|end|>"
    assert tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True) == text


def test_the_tokenizer_file_is_read_as_it_was_written(tokenizer: PreTrainedTokenizerBase) -> None:
    # AutoTokenizer may pick a class by the model's type; it must not swap the pre-tokenizer.
    written = json.loads((model_path() / "tokenizer.json").read_text("utf-8"))
    assert json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"] == written["pre_tokenizer"]


def test_an_interrupted_training_continues_to_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "BATCH", 8)
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 2)
    tokenizer = build_tokenizer(0)
    unbroken, broken, continued = (train.build_model(tokenizer, 0) for _ in range(3))
    train.train(unbroken, tokenizer, tmp_path / "unbroken.pt", steps=5)

    draw, drawn = train.draw_batch, 0

    def draw_three(tokenizer: PreTrainedTokenizerFast, rng: Random) -> list[train.Batch]:
        nonlocal drawn
        drawn += 1
        if drawn > 3:
            raise KeyboardInterrupt
        return draw(tokenizer, rng)

    monkeypatch.setattr(train, "draw_batch", draw_three)
    with pytest.raises(KeyboardInterrupt):
        train.train(broken, tokenizer, tmp_path / "broken.pt", steps=5)
    monkeypatch.setattr(train, "draw_batch", draw)
    train.train(continued, tokenizer, tmp_path / "broken.pt", steps=5)
    for expected, got in zip(unbroken.parameters(), continued.parameters(), strict=True):
        assert torch.equal(expected, got)
