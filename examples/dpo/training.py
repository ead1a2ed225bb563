"""One fine-tuning by direct preference optimisation with TRL, on pairs of token ids."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_callback import PrinterCallback
from trl.trainer.dpo_config import DPOConfig

from examples.dpo.pairs import Pair
from steering_pts.interop.pair_trainer import PairTrainer

BETA: Final = 0.1
BATCH: Final = 4
LEARNING_RATES: Final = (0.05, 0.1, 0.2, 0.4)
LORA_LEARNING_RATES: Final = (4.0, 8.0, 16.0, 32.0, 64.0)
_RANK: Final = 8


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is fine-tuned.

    Attributes:
        source: Folder of the model.
        lora: Train low-rank adapters (Hu et al., arXiv 2106.09685) and merge them, instead of all weights.
    """

    source: str
    lora: bool


@dataclass(frozen=True, slots=True, eq=False)
class FineTuned:
    """A fine-tuned model, and what it cost.

    Attributes:
        model: The model, adapters merged.
        tokens: Tokens that were computed: both answers of every pair, each after its prompt.
        steps: Steps of the optimiser.
    """

    model: Any
    tokens: int
    steps: int


def fine_tune(recipe: Recipe, pairs: Sequence[Pair], learning_rate: float, seed: int) -> FineTuned:
    """Trains once over the pairs, in their order.

    Plain gradient descent, not Adam: a pair of single tokens says nothing about all other steps, and Adam, which moves
    every weight as far as it moves those that matter, soon writes the chosen token everywhere.
    """
    _quieten()
    model = _load(recipe.source)
    options: dict[str, Any] = (
        {"peft_config": LoraConfig(r=_RANK, lora_alpha=2 * _RANK, target_modules="all-linear")}
        if recipe.lora
        else {"ref_model": _load(recipe.source)}
    )
    columns = {
        name: [list(getattr(pair, name)) for pair in pairs]
        for name in ("prompt_ids", "chosen_ids", "rejected_ids")
    }
    with tempfile.TemporaryDirectory() as folder:
        trainer = PairTrainer(
            model=model,
            args=DPOConfig(
                output_dir=folder,
                beta=BETA,
                learning_rate=learning_rate,
                lr_scheduler_type="constant",
                optim="sgd",
                per_device_train_batch_size=BATCH,
                num_train_epochs=1,
                train_sampling_strategy="sequential",
                gradient_checkpointing=False,
                use_cpu=True,
                bf16=False,
                seed=seed,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict(columns),
            processing_class=AutoTokenizer.from_pretrained(recipe.source),
            **options,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    trained = trainer.model.merge_and_unload() if recipe.lora else trainer.model
    # TRL has put its own head into the model that it trained; a fresh one with these weights is an ordinary model.
    plain = _load(recipe.source)
    plain.load_state_dict(trained.state_dict())
    tokens = sum(pair.tokens for pair in pairs)
    return FineTuned(plain.eval(), tokens, trainer.state.global_step)


def _load(source: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)


def _quieten() -> None:
    """Bars and notices of dozens of trainings of a second each would bury what is measured."""
    disable_progress_bars()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    logging.getLogger("trl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\..*")
