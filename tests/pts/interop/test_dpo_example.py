"""The recipe in `examples/dpo`: what both arms train on, one training, and the comparison as a whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from examples.dpo.__main__ import main
from examples.dpo.pairs import Pair, completion_pairs, decision_pairs, up_to
from examples.dpo.recipe import difference
from examples.dpo.training import Recipe, fine_tune
from steering_pts.cli.run import RunFolder
from steering_pts.oracles.base import Verdict

# What the libraries say of their own names.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

ids = st.lists(st.integers(2, 9), min_size=1, max_size=5).map(tuple)
pair_lists = st.lists(st.builds(Pair, ids, ids, ids), min_size=1, max_size=6)


@given(pair_lists, st.integers(1, 200), st.integers(0, 3))
def test_both_arms_get_the_same_tokens_but_for_the_last_pair(
    pairs: list[Pair], tokens: int, seed: int
) -> None:
    chosen = up_to(pairs, tokens, seed)

    assert sum(pair.tokens for pair in chosen[:-1]) < tokens <= sum(pair.tokens for pair in chosen)
    used = [chosen.count(pair) / pairs.count(pair) for pair in set(pairs)]
    assert max(used) - min(used) <= 1, "a pair comes again when all have been there"


def test_without_pairs_there_is_nothing_to_train_on() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        up_to([], 10, 0)


def test_pairs_are_those_of_the_run(finished_run: RunFolder) -> None:
    with finished_run.read() as ledger:
        decisions, whole = decision_pairs(ledger), completion_pairs(ledger)
        verdicts = {(c.prompt_ids, c.ids): c.verdict for c in ledger.completions()}
        pivots = ledger.pivots()

    assert [(one.chosen_ids, one.rejected_ids) for one in decisions] == [
        (pivot.chosen_ids, pivot.rejected_ids) for pivot in pivots
    ]
    assert whole
    for pair in whole:
        assert verdicts[pair.prompt_ids, pair.chosen_ids] is Verdict.CORRECT
        assert verdicts[pair.prompt_ids, pair.rejected_ids] is Verdict.INCORRECT


@pytest.mark.parametrize("lora", [False, True])
def test_a_training_raises_the_better_token_and_gives_an_ordinary_model(
    ending_folder: Path, tmp_path: Path, lora: bool
) -> None:
    pair = Pair((70, 71, 72), (80,), (90,))

    tuned = fine_tune(
        Recipe(str(ending_folder), lora), [pair] * 8, learning_rate=4.0 if lora else 0.2, seed=0
    )

    assert (tuned.tokens, tuned.steps) == (64, 2)
    tuned.model.save_pretrained(tmp_path)
    margins = []
    for folder in (ending_folder, tmp_path):
        model = AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            logits = model(torch.tensor([pair.prompt_ids])).logits[0, -1]
        margins.append(float(logits[80] - logits[90]))
    assert margins[1] > margins[0] + 0.1


def test_samples_are_compared_with_the_same_problems_before() -> None:
    before = {"a": [True], "b": [False]}
    after = {"a": [True, False], "b": [True, True]}

    assert difference(before, after, seed=0).value == pytest.approx(0.25)


def test_the_recipe_reports_both_arms_at_equal_tokens(
    finished_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the pairs of another model, whose ids the bundled one has too: what comes out of it means nothing."""
    sizes = ["--trainings", "1", "--validation", "4", "--test", "4", "--tokens", "60", "--rates", "0.1"]

    main(["--run", str(finished_run.path), "--out", str(tmp_path), *sizes])

    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    arms = report["budgets"]["60"]["arms"]
    assert list(arms) == ["pivotal pairs", "whole completions"]
    for name, arm in arms.items():
        assert arm["tokens"] >= 60
        assert arm["learning_rate"] in map(float, arm["validation"])
        assert arm["change"]["value"] == pytest.approx(arm["success"] - report["before"])
        assert f"{name:18} {arm['tokens']:7.0f}" in printed
    assert (tmp_path / "model" / "tokenizer.json").is_file()
