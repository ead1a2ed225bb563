"""Reading rows of the residual stream off a model with nnsight."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnsight import TransformersModel

from steering_engine.blocks import find_blocks
from steering_engine.errors import one_line
from steering_engine.loading import LoadedModel
from steering_pts.errors import RecordingError

MEMORY_BYTES = 2 << 30
"""What a forward's activations may take if nothing else is asked for."""
_MOST_TOKENS = 8192  # of a forward: more make nothing faster, and what is lost by a kill larger

Remote = bool | str
"""False here, True at NDIF, or nnsight's `local` (what would be sent, run here) or a host's address."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Rows to be read off one sequence.

    Attributes:
        ids: The sequence.
        rows: Indices of the tokens whose rows are read.
    """

    ids: tuple[int, ...]
    rows: tuple[int, ...]

    @classmethod
    def last(cls, ids: Sequence[int]) -> Reading:
        """The row of the last id: the one that predicts what comes next."""
        return cls(tuple(ids), (len(ids) - 1,))


class Reader:
    """A model as nnsight traces it."""

    def __init__(self, loaded: LoadedModel, remote: Remote = False) -> None:
        """Wraps a model.

        Args:
            loaded: The model; for a remote reading only its structure and its id on the hub are used.
            remote: Where the forwards run.

        Raises:
            RecordingError: Another machine can't know the model, because it is a folder of this one.
        """
        self._remote = remote
        away = remote not in {False, "local"}
        if away and Path(loaded.source).exists():
            raise RecordingError(
                f"{loaded.source} is a folder; recording on another machine needs a model by its id on the hub"
            )
        self._device = loaded.device
        self._traced: Any = TransformersModel(
            loaded.source if away else loaded.model, task="text-generation", tokenizer=loaded.tokenizer
        )
        self._path = _block_path(loaded.model)

    def read(self, readings: Sequence[Reading], blocks: Sequence[int]) -> dict[int, torch.Tensor]:
        """resid_post of all rows of some readings, one after the other, by block: `[rows, hidden]` on the CPU.

        Args:
            readings: Sequences of one length, so that nothing is padded and every row is that of a plain forward.
            blocks: Which blocks. The forward ends behind the last of them.

        Raises:
            RecordingError: The forward failed on another machine.
        """
        input_ids = torch.tensor([reading.ids for reading in readings])
        sequence = torch.tensor([number for number, one in enumerate(readings) for _ in one.rows])
        row = torch.tensor([row for one in readings for row in one.rows])
        try:
            saved = self._trace(input_ids, sequence, row, sorted(blocks))
        except Exception as error:
            if not self._remote:
                raise
            raise RecordingError(f"recording remotely failed: {one_line(error)}") from error
        return {block: rows.cpu() for block, rows in saved.items()}

    def _trace(
        self, input_ids: torch.Tensor, sequence: torch.Tensor, row: torch.Tensor, blocks: list[int]
    ) -> dict[int, torch.Tensor]:
        traced, path = self._traced, self._path  # what is traced may be sent away, and `self` should not be
        saved: dict[int, Any] = {}
        with torch.no_grad(), traced.trace(input_ids, use_cache=False, remote=self._remote) as tracer:
            for block in blocks:
                output = traced.get(f"{path}.{block}").output
                hidden = output[0] if isinstance(output, tuple) else output
                # Indexing copies: a view would keep the rows of all tokens.
                saved[block] = hidden[sequence, row].save()
            tracer.stop()
        return saved


def record_rows(
    loaded: LoadedModel,
    readings: Sequence[Reading],
    blocks: Sequence[int],
    *,
    memory_bytes: int = MEMORY_BYTES,
    remote: Remote = False,
    on_done: Callable[[int], None] | None = None,
) -> dict[int, torch.Tensor]:
    """resid_post of all rows of all readings, by block: `[rows, hidden]` float32 on the CPU, in the readings' order.

    All of it is held in memory; `recording.record` writes to a file instead.

    Args:
        loaded: The model.
        readings: What is read.
        blocks: Which blocks.
        memory_bytes: What the activations of a forward may take.
        remote: Where the forwards run.
        on_done: Hears the tokens of every sequence that is done.
    """
    starts = [0]
    for reading in readings:
        starts.append(starts[-1] + len(reading.rows))
    states = {block: torch.zeros(starts[-1], loaded.hidden_size) for block in blocks}
    reader = Reader(loaded, remote)
    for batch in batches_of([len(reading.ids) for reading in readings], loaded, memory_bytes):
        rows = reader.read([readings[index] for index in batch], blocks)
        at = torch.tensor([row for index in batch for row in range(starts[index], starts[index + 1])])
        for block in blocks:
            states[block][at] = rows[block].float()
        if on_done is not None:
            for index in batch:
                on_done(len(readings[index].ids))
    return states


def batches_of(lengths: Sequence[int], loaded: LoadedModel, memory_bytes: int) -> list[list[int]]:
    """Which sequences share a forward: those of one length, as many as the memory allows, the short ones first.

    Args:
        lengths: Tokens of each sequence.
        loaded: The model.
        memory_bytes: What the activations of a forward may take; one sequence is run in any case.
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, length in enumerate(lengths):
        by_length[length].append(index)
    batches = []
    for length, alike in sorted(by_length.items()):
        tokens = min(_MOST_TOKENS, memory_bytes // _token_bytes(loaded, length))
        size = max(1, tokens // max(1, length))
        batches += [alike[start : start + size] for start in range(0, len(alike), size)]
    return batches


def _token_bytes(loaded: LoadedModel, length: int) -> int:
    """Bytes that a token's activations take while a block computes, at most: an estimate from the shapes.

    The residual stream and what attention and the feed-forward part make of it, and a row of attention weights for
    each head, as if they were all there at once. Blocks free theirs, and the forward ends before the logits.
    """
    config = loaded.model.config.get_text_config()
    inner = getattr(config, "intermediate_size", None) or 4 * loaded.hidden_size
    numbers = 8 * loaded.hidden_size + 3 * int(inner) + int(config.num_attention_heads) * length
    return numbers * int(loaded.model.dtype.itemsize)


def _block_path(model: torch.nn.Module) -> str:
    blocks = find_blocks(model)
    name: str = next(name for name, module in model.named_modules() if module is blocks)
    return name
