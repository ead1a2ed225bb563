"""Train the demonstration model from scratch: ``python -m steering_pts.demo.train --out DIR``.

Writes ``DIR/model`` (model, tokenizer, model card) and ``DIR/data`` (the data sets). On two idle
cores the training takes about eight minutes and the measuring one or two more; an interrupted
training continues from its last checkpoint. The same seed gives the same model on the same build
of torch with the same number of threads.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Final

import torch
from torch.nn import functional
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from steering_pts.demo.card import model_card, results_table
from steering_pts.demo.measure import measure
from steering_pts.demo.problems import (
    FORMS,
    SPLITS,
    Split,
    draw_problem,
    problems_in,
    rows_of,
    write_solution,
)
from steering_pts.demo.tokenizer import (
    ASSISTANT,
    END,
    MAX_LENGTH,
    build_tokenizer,
    prompt_text,
    save_tokenizer,
)

SEED: Final = 20260
THREADS: Final = 2
STEPS: Final = 1100
BATCH: Final = 192
# Each batch is sorted by length and cut into this many parts, which halves the padding.
PARTS: Final = 4
PEAK_LEARNING_RATE: Final = 3e-3
CHECKPOINT_EVERY: Final = 250
DATA_SIZES: Final[dict[Split, int]] = {"train": 800, "validation": 400, "test": 600}
# The standard error of every measured rate is then at most 0.011.
MEASURED_ROLLOUTS: Final = 2000
_IGNORED: Final = -100


@dataclass(frozen=True, slots=True)
class Batch:
    """Part of a batch: right-padded token ids and their targets, each of shape (rows, length)."""

    tokens: torch.Tensor
    targets: torch.Tensor


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """The untrained model: four decoder blocks, 0.83 million parameters."""
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=MAX_LENGTH,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def draw_batch(tokenizer: PreTrainedTokenizerFast, rng: Random) -> list[Batch]:
    """One batch of fresh solutions of training problems, cut into parts of like lengths."""
    texts: list[str] = []
    for _ in range(BATCH):
        problem = draw_problem("train", rng)
        texts.append(prompt_text(problem.question) + write_solution(problem, rng) + END)
    rows = sorted(tokenizer(texts)["input_ids"], key=len)
    begin = tokenizer.convert_tokens_to_ids(ASSISTANT)
    size = BATCH // PARTS
    return [
        _pad(rows[start : start + size], begin, tokenizer.pad_token_id) for start in range(0, BATCH, size)
    ]


def _pad(rows: Sequence[list[int]], begin: int, pad: int) -> Batch:
    """Pad on the right, where causal attention needs no mask; only solutions are targets."""
    length = max(map(len, rows))
    tokens = torch.full((len(rows), length), pad)
    targets = torch.full((len(rows), length), _IGNORED)
    for index, row in enumerate(rows):
        start = row.index(begin)
        tokens[index, : len(row)] = torch.tensor(row)
        targets[index, start : len(row) - 1] = torch.tensor(row[start + 1 :])
    return Batch(tokens, targets)


def train(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, checkpoint: Path, steps: int) -> None:
    """Train in place for ``steps`` steps, continuing from ``checkpoint`` where it exists."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    done = 0
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        done = saved["step"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    model.train()
    progress = tqdm(range(done, steps), initial=done, total=steps, desc="training", mininterval=2)
    for step in progress:
        # The step's own generator makes a continued run draw what an unbroken one would have.
        batch = draw_batch(tokenizer, Random(f"{SEED}/{step}"))
        count = sum(int((part.targets != _IGNORED).sum()) for part in batch)
        loss = sum(_accumulate(model, part, count) for part in batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        progress.set_postfix(loss=f"{loss:.4f}", refresh=False)
        if (step + 1) % CHECKPOINT_EVERY == 0 and step + 1 < steps:
            states = {name: part.state_dict() for name, part in parts.items()}
            torch.save({"step": step + 1, **states}, checkpoint)
    model.eval()


def _accumulate(model: Qwen3ForCausalLM, part: Batch, count: int) -> float:
    """Add the gradient of a part's share in the batch's mean loss; returns the share."""
    logits = model(input_ids=part.tokens, use_cache=False).logits
    loss = functional.cross_entropy(
        logits.flatten(0, 1), part.targets.flatten(), ignore_index=_IGNORED, reduction="sum"
    )
    torch.autograd.backward(loss / count)
    return float(loss.detach()) / count


def write_data(folder: Path) -> None:
    """Write the data sets as JSON lines."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        rows = rows_of(split, DATA_SIZES[split], Random(f"{SEED}/{split}"))
        lines = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure and write everything."""
    parser = argparse.ArgumentParser(
        prog="python -m steering_pts.demo.train", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write model/ and data/ into")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps (default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)

    folder: Path = options.out / "model"
    folder.mkdir(parents=True, exist_ok=True)
    write_data(options.out / "data")
    tokenizer = build_tokenizer(SEED)
    model = build_model(tokenizer, SEED)
    # The schedule depends on the number of steps, so runs of other lengths do not share checkpoints.
    checkpoint: Path = options.out / f"checkpoint-{options.steps}.pt"
    train(model, tokenizer, checkpoint, options.steps)
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    problems = [problem for form in FORMS for problem in problems_in("test", form)]
    measured = measure(model, tokenizer, problems, MEASURED_ROLLOUTS, SEED)
    card = model_card(model.num_parameters(), options.steps, BATCH, measured)
    (folder / "README.md").write_text(card, encoding="utf-8")
    checkpoint.unlink(missing_ok=True)
    print(results_table(measured))


if __name__ == "__main__":
    main()
