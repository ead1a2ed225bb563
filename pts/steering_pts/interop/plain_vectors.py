"""Plain safetensors of other tools: one tensor for each layer, and nothing that says what it is for.

Which model, and at which point of a layer the vector is added, has to be told. Adding to the input of layer l is adding
to the output of block l - 1; transformers' `hidden_states` are numbered like inputs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from steering_pts.errors import InteropError

HOOK_POINTS: Final[Mapping[str, int]] = {"resid_post": 0, "resid_pre": -1, "hidden_states": -1}
"""What must be added to the number of a layer to have the block whose output it is."""
_NUMBER: Final = re.compile(r"\d+")
_FLOATS: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_OURS: Final = "steering.vector/1"
_DIGITS: Final = 6


def read_plain_vectors(path: Path, hook_point: str) -> dict[int, torch.Tensor]:
    """The vectors of a file by block, `[hidden]` float32.

    The name of each tensor must hold one number, its layer: `3`, `layer_3`, `model.layers.3` and the like.

    Raises:
        InteropError: It can't be read, or what it holds is not that; the error holds everything that is wrong.
    """
    if hook_point not in HOOK_POINTS:
        raise InteropError(
            str(path), [f"hook point {hook_point!r} is not known; expected {', '.join(HOOK_POINTS)}"]
        )
    tensors = _tensors(path)
    faults: list[str] = [] if tensors else ["it holds no tensor"]
    found: dict[int, str] = {}
    vectors: dict[int, torch.Tensor] = {}
    for name, tensor in sorted(tensors.items()):
        numbers = _NUMBER.findall(name)
        flat = tensor.squeeze()
        fault: str | None = "its name must hold one number, its layer"
        if len(numbers) == 1 and len(numbers[0]) <= _DIGITS:
            fault = _fault(tensor, int(numbers[0]), hook_point, found)
        if fault is not None:
            faults.append(f"tensor {name!r:.80}: {fault}")
            continue
        layer = int(numbers[0])
        found[layer] = name
        vectors[layer + HOOK_POINTS[hook_point]] = flat.float()
    if faults:
        raise InteropError(str(path), faults)
    return vectors


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        data = path.read_bytes()
        tensors = load(data)
    except OSError as error:
        raise InteropError(str(path), [f"it can't be read: {error.strerror}"]) from error
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InteropError(str(path), [f"not a sound safetensors file: {error}"]) from error
    if _OURS.encode() in data[8 : 8 + int.from_bytes(data[:8], "little")]:
        raise InteropError(str(path), ["it is a steering vector already; the server loads it as it is"])
    return tensors


def _fault(tensor: torch.Tensor, layer: int, hook_point: str, found: Mapping[int, str]) -> str | None:
    if tensor.dtype not in _FLOATS:
        return f"dtype {tensor.dtype}; expected floating-point numbers"
    if tensor.squeeze().ndim != 1:
        return f"shape {list(tensor.shape)}; expected [hidden]"
    if layer + HOOK_POINTS[hook_point] < 0:
        return f"{hook_point} of layer 0 is the embeddings, which no block gives out; leave it out"
    if layer in found:
        return f"it is for layer {layer}, like {found[layer]!r:.80}"
    return None
