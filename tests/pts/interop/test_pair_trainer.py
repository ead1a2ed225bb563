"""TRL trains on the ids of pairs as they are: no token added, and only the answers in the loss."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid
from trl.trainer.dpo_config import DPOConfig

from steering_pts.cli.run import RunFolder
from steering_pts.errors import DataError
from steering_pts.interop.pair_trainer import PairTrainer
from tests.support.models import byte_tokenizer, tiny_model
from tests.support.pts import run_pts

# What the libraries say of their own names.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

BETA = 0.5
PAIRS = [
    {"prompt_ids": [5, 6, 7], "chosen_ids": [8], "rejected_ids": [9], "chosen": "no ids of this"},
    {"prompt_ids": [10], "chosen_ids": [11, 12], "rejected_ids": [13], "chosen": "nor of this"},
]


def trainer_of(rows: list[dict[str, Any]], folder: Path, **options: Any) -> PairTrainer:
    model = tiny_model("qwen3")
    arguments = {
        "output_dir": str(folder),
        "beta": BETA,
        "per_device_train_batch_size": 2,
        "train_sampling_strategy": "sequential",
        "gradient_checkpointing": False,
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "max_steps": 1,
        "disable_tqdm": True,
        "save_strategy": "no",
        **options,
    }
    return PairTrainer(
        model=model,
        ref_model=copy.deepcopy(model),
        args=DPOConfig(**arguments),
        train_dataset=Dataset.from_list(rows),
        processing_class=byte_tokenizer(),
    )


def batch_of(trainer: PairTrainer) -> dict[str, torch.Tensor]:
    (batch,) = trainer.get_train_dataloader()
    return {name: values for name, values in batch.items() if isinstance(values, torch.Tensor)}


def test_a_batch_holds_the_ids_and_nothing_else(tmp_path: Path) -> None:
    trainer = trainer_of(PAIRS, tmp_path)

    batch = batch_of(trainer)

    pad = trainer.processing_class.pad_token_id
    expected = [[5, 6, 7, 8], [10, 11, 12, pad], [5, 6, 7, 9], [10, 13, pad, pad]]
    width = batch["input_ids"].shape[1]  # which TRL may round up
    assert batch["input_ids"].tolist() == [row + [pad] * (width - 4) for row in expected]
    assert batch["attention_mask"].sum(1).tolist() == [4, 3, 4, 2]
    assert trainer.processing_class.eos_token_id not in batch["input_ids"]


def test_the_answers_alone_are_in_the_loss(tmp_path: Path) -> None:
    trainer = trainer_of(PAIRS, tmp_path)
    batch = batch_of(trainer)
    assert batch["completion_mask"].sum(1).tolist() == [1, 2, 1, 1]
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))

    loss = float(trainer.compute_loss(trainer.model, dict(batch)).detach())

    def answer(model: Any, prompt: list[int], ids: list[int]) -> torch.Tensor:
        plain = tiny_model("qwen3")  # TRL has put its own head into both of its models
        plain.load_state_dict(model.state_dict())
        with torch.no_grad():
            logprobs = plain(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        return sum((logprobs[len(prompt) - 1 + i, one] for i, one in enumerate(ids)), start=torch.tensor(0.0))

    margins = []
    for pair in PAIRS:
        prompt = list(pair["prompt_ids"])
        gains = [
            answer(trainer.model, prompt, list(pair[side]))
            - answer(trainer.ref_model, prompt, list(pair[side]))
            for side in ("chosen_ids", "rejected_ids")
        ]
        margins.append(gains[0] - gains[1])
    expected = -logsigmoid(BETA * torch.stack(margins)).mean()
    assert loss == pytest.approx(float(expected), rel=1e-4)
    assert abs(loss - 0.6931) > 1e-3, "the policy has left the reference"


def test_training_on_an_export_prefers_the_better_tokens(finished_run: RunFolder, tmp_path: Path) -> None:
    ended = run_pts("export", str(finished_run.path), "--to", "trl-dpo")
    rows = [json.loads(line) for line in ended.out.splitlines()][:4]
    trainer = trainer_of(
        rows, tmp_path, max_steps=6, learning_rate=3e-3, logging_steps=6, per_device_train_batch_size=4
    )

    trainer.train()

    (logged, *_) = trainer.state.log_history
    tokens = sum(
        2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows
    )
    assert logged["num_tokens"] == 6 * tokens
    assert logged["rewards/accuracies"] > 0.8


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"prompt_ids": [1], "chosen_ids": [2]}, "no column 'rejected_ids'"),
        ({"prompt_ids": [], "chosen_ids": [2], "rejected_ids": [3]}, "row 1: prompt_ids is []; expected"),
        ({"prompt_ids": [1], "chosen_ids": [-2], "rejected_ids": [3]}, "chosen_ids holds something else"),
        ({"prompt_ids": [1], "chosen_ids": [3], "rejected_ids": [3]}, "are the same"),
        (
            {"prompt_ids": [1] * 20, "chosen_ids": [2], "rejected_ids": [3]},
            "21 tokens, of which max_length=16 would cut the answer",
        ),
    ],
)
def test_rows_that_can_not_be_trained_on_are_refused(tmp_path: Path, row: dict[str, Any], fault: str) -> None:
    with pytest.raises(DataError) as caught:
        trainer_of([row], tmp_path, max_length=16)

    assert fault in str(caught.value)
