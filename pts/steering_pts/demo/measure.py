"""How often the demonstration model succeeds from each side of its planted decisions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from steering_pts.demo.problems import (
    FORMS,
    RULES,
    Form,
    Problem,
    flawed_beginning,
    flawed_working,
    is_correct,
    opening,
)
from steering_pts.demo.tokenizer import prompt_text

Place = Literal["start", "right", "flawed", "correction", "answer"]

PLACES: Final[tuple[Place, ...]] = ("start", "right", "flawed", "correction", "answer")
# The longest of 15,000 written solutions has 52 tokens.
MAX_NEW_TOKENS: Final = 64


@dataclass(frozen=True, slots=True)
class Measurement:
    """Rollouts of one form from one place: how many, how many right, how many begun flawed."""

    form: Form
    place: Place
    rollouts: int
    successes: int
    flawed: int


def prefix_at(problem: Problem, place: Place) -> str:
    """The beginning of a solution from which a place's rollouts continue."""
    if place == "start":
        return ""
    if place == "correction":
        return f"{flawed_beginning(problem)} Wait"
    if place == "answer":
        return f"{flawed_working(problem)} Answer"
    return opening(problem, place)


def sample_solutions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    beginnings: Sequence[tuple[Problem, str]],
) -> list[str]:
    """Sample one solution per (problem, prefix) at temperature 1 from the whole distribution.

    Returns the solutions with their prefixes, without special tokens. Draws from torch's global
    generator.
    """
    texts = [prompt_text(problem.question) + prefix for problem, prefix in beginnings]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    with torch.inference_mode():
        tokens = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=MAX_NEW_TOKENS,
        )
    written = tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [prefix + text for (_, prefix), text in zip(beginnings, written, strict=True)]


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    rollouts: int,
    seed: int,
) -> tuple[Measurement, ...]:
    """Measure every form at every place with ``rollouts`` rollouts each.

    The rollouts of a form are spread evenly over its problems among ``problems``.
    """
    torch.manual_seed(seed)
    measured: list[Measurement] = []
    for form in FORMS:
        pool = [problem for problem in problems if problem.form == form]
        drawn = [pool[index % len(pool)] for index in range(rollouts)]
        for place in PLACES:
            beginnings = [(problem, prefix_at(problem, place)) for problem in drawn]
            solutions = sample_solutions(model, tokenizer, beginnings)
            pairs = list(zip(drawn, solutions, strict=True))
            successes = sum(is_correct(problem, solution) for problem, solution in pairs)
            flawed = sum(solution.startswith(opening(problem, "flawed")) for problem, solution in pairs)
            measured.append(Measurement(form, place, rollouts, successes, flawed))
    return tuple(measured)


def success_rate(measured: Sequence[Measurement], place: Place, form: Form) -> float:
    """The share of right answers of a form's rollouts from a place."""
    found = _at(measured, place, form)
    return found.successes / found.rollouts


def flawed_share(measured: Sequence[Measurement], form: Form) -> float:
    """The share of a form's rollouts from the start that take the flawed strategy."""
    found = _at(measured, "start", form)
    return found.flawed / found.rollouts


def mix_mean(rates: Mapping[Form, float]) -> float:
    """The mean of the forms' rates, weighted by the forms' shares in the data sets."""
    return sum(RULES[form].share * rate for form, rate in rates.items())


def _at(measured: Sequence[Measurement], place: Place, form: Form) -> Measurement:
    return next(m for m in measured if (m.place, m.form) == (place, form))
