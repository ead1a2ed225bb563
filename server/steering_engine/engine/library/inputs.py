"""The library's inputs of a batch, as the followers of a shared model need them.

They are attributes of its `ContinuousBatchingIOs`; tests/unit/test_seams.py watches over them.
"""

from __future__ import annotations

from typing import Any

import torch

from steering_engine.engine.process_group import share

SIZES = (
    "num_q_tokens", "max_kv_read", "num_request_in_batch", "true_read_sizes", "true_write_sizes", "use_block_table",
    "total_seqlen_q", "total_seqlen_k", "max_length_q", "max_length_k",
)  # fmt: skip
"""What describes a batch besides tensors."""


def sizes_of(inputs: Any) -> dict[str, Any]:
    """What describes the current batch besides tensors, by name."""
    return {name: getattr(inputs, name) for name in SIZES}


def set_sizes(inputs: Any, sizes: dict[str, Any]) -> None:
    """Takes over what describes the driver's batch."""
    for name in SIZES:
        setattr(inputs, name, sizes[name])


def share_tensors(inputs: Any) -> None:
    """Makes the tensors of a batch what they are at the driver; every process calls this when the sizes are set.

    They are written in place, because a captured graph reads them where they are.
    """
    for tensor in _tensors_of(inputs):
        share(tensor)


def _tensors_of(inputs: Any) -> list[torch.Tensor]:
    rows = inputs.num_q_tokens
    keys = inputs.max_kv_read + rows
    tensors = [inputs._bulk_input_tensor]  # noqa: SLF001 -- the library's own buffer
    if inputs.use_block_table:
        tensors.append(inputs.block_table)
    else:
        tensors.append(inputs.write_index_storage[:, : max(rows, *inputs.true_write_sizes)])
        if inputs.max_kv_read:
            tensors.append(inputs.read_index_storage[:, : max(keys, *inputs.true_read_sizes)])
    for name, mask in (inputs.attention_mask or {}).items():
        tensors.append(mask[..., :rows, : max(keys, inputs.total_seqlen_k[name])])
    return tensors
