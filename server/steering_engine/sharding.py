"""Whether a model can be shared by several processes: transformers' own plan for it, judged before anything starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed
from transformers import AutoModelForCausalLM

from steering_engine.errors import ModelError

_HEADS_IN = ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "q_b_proj", "kv_b_proj")
"""Projections whose outputs are heads; their names in transformers' plans."""
_KEYS_IN = ("k_proj", "qkv_proj", "query_key_value")
_SPLITS_OUTPUT = "colwise"
_SPLITS_ROWS = "sequence_parallel"


def check_processes(device: torch.device, processes: int) -> None:
    """Makes sure that this process can start others beside it, each with a device of its own.

    Raises:
        ModelError: It can't; the message says why.
    """
    if processes < 1:
        raise ModelError(f"tensor_parallel is {processes}; expected at least 1")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ModelError(
            "this process was started by torchrun; tensor parallelism starts its other processes itself, "
            "so start one without torchrun"
        )
    if torch.distributed.is_initialized():
        raise ModelError(
            "this process is in a group of processes already; it can share one model with others at a time"
        )
    if device.type == "cpu" and torch.accelerator.is_available():
        raise ModelError(
            "transformers shards a model over the accelerators that it sees, not over the CPU; "
            "hide them to share a model on the CPU (CUDA_VISIBLE_DEVICES=)"
        )
    if device.type == "cuda":
        if device.index is not None:
            raise ModelError(
                f"device {device} was asked for, but tensor parallelism takes the first {processes} CUDA devices; "
                "ask for cuda, and choose them by CUDA_VISIBLE_DEVICES"
            )
        found = torch.cuda.device_count()
        if found < processes:
            raise ModelError(f"tensor parallelism over {processes} needs as many CUDA devices; found {found}")


def check_plan(config: Any, processes: int) -> None:
    """Makes sure that transformers' plan for the model divides it among so many processes in a way that can be steered.

    Raises:
        ModelError: It doesn't; the message says why.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    fault = plan_fault(model.tp_plan or {}, config.get_text_config(), processes)
    if fault is not None:
        raise ModelError(f"{type(model).__name__} can't be shared by {processes} processes: {fault}")


def plan_fault(plan: Mapping[str, str], config: Any, processes: int) -> str | None:
    """What speaks against a plan of transformers (module or parameter name to style); None if nothing does."""
    if not plan:
        return "transformers has no tensor parallel plan for it"
    if not any("*" in name for name in plan):
        return f"transformers' plan for it divides no decoder block ({', '.join(plan)} only)"
    if split := [name for name, style in plan.items() if style == _SPLITS_ROWS]:
        # Steering adds to rows of a block's output, which has to be whole on every process.
        return f"its plan divides the rows of the residual stream ({split[0]}: {_SPLITS_ROWS})"
    if any(_last(name) in _HEADS_IN and style == _SPLITS_OUTPUT for name, style in plan.items()):
        heads = int(config.num_attention_heads)
        key_heads = int(getattr(config, "num_key_value_heads", None) or heads)
        for count, what in ((heads, "attention heads"), (key_heads, "key-value heads")):
            if count % processes:
                return f"its {count} {what} can't be divided by {processes}"
    return None


def splits_key_heads(plan: Mapping[str, str]) -> bool:
    """Whether each process computes, and so caches, only its share of the key-value heads."""
    return any(_last(name) in _KEYS_IN and style == _SPLITS_OUTPUT for name, style in plan.items())


def _last(name: str) -> str:
    return name.rpartition(".")[2]
