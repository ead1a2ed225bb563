"""GGUF control vectors, the format of llama.cpp, repeng and EasySteer.

A file holds `direction.{layer}` float32 `[hidden]`, and says `general.architecture = controlvector`,
`controlvector.model_hint` (the model's architecture) and `controlvector.layer_count` (how many directions there are).
repeng and llama.cpp add direction l, times a strength, to the output of decoder block l, counted from 0: a layer here
is a block of ours. repeng reads layer 0 too; llama.cpp refuses a whole file with a `direction.0`, with another tensor
besides, or with anything but float32.

The format has no place for when to act: readers steer every token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from gguf import GGUFReader, GGUFValueType, GGUFWriter

from steering_engine.vectors.schema import SteeringVector
from steering_pts.errors import InteropError
from steering_pts.ledger.export import replacing

ARCHITECTURE: Final = "controlvector"
_DIRECTION: Final = re.compile(r"direction\.(0|[1-9][0-9]{0,5})")
_FLOATS: Final = ("F32", "F16", "F64")


@dataclass(frozen=True, slots=True, eq=False)
class ControlVector:
    """What a control vector file holds.

    Attributes:
        model_hint: The model's architecture, as the file calls it; empty where it does not say.
        directions: `[hidden]` float32 by layer, in residual units.
    """

    model_hint: str
    directions: Mapping[int, torch.Tensor]


def control_vector(
    vector: SteeringVector, model_hint: str, blocks: Sequence[int] = (), *, with_block_0: bool = False
) -> ControlVector:
    """A vector's directions at their calibrated strength, as the format holds them.

    Args:
        vector: The vector.
        model_hint: The model's architecture.
        blocks: Only these; all if empty.
        with_block_0: Keep block 0, which llama.cpp can't read.

    Raises:
        InteropError: It has no direction at a block, or one at block 0 that was not asked for.
    """
    name = vector.metadata.name
    has = sorted(vector.directions)
    if missing := sorted(set(blocks) - set(has)):
        raise InteropError(name, [f"no direction at block {block}; it has {has}" for block in missing])
    chosen = sorted(set(blocks)) or has
    if 0 in chosen and not with_block_0:
        others = [block for block in chosen if block != 0]
        instead = f"keep the other blocks alone ({_flags(others)}), or " if others else ""
        fault = (
            f"it has a direction at block 0, with which llama.cpp refuses the whole file; {instead}pass "
            "--with-block-0 for repeng, which reads it"
        )
        raise InteropError(name, [fault])
    strength = vector.metadata.calibrated_strength
    return ControlVector(
        model_hint, {block: strength[block] * vector.directions[block].float() for block in chosen}
    )


def _flags(blocks: Sequence[int]) -> str:
    return " ".join(f"--block {block}" for block in blocks)


def write_control_vector(path: Path, vector: ControlVector) -> None:
    """Writes a file that is complete or not there.

    Raises:
        LedgerError: It can't be written; nothing is left behind.
    """
    with replacing(path) as temporary:
        writer = GGUFWriter(temporary, ARCHITECTURE)
        try:
            writer.add_string(f"{ARCHITECTURE}.model_hint", vector.model_hint)
            writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(vector.directions))
            for layer, direction in sorted(vector.directions.items()):
                writer.add_tensor(f"direction.{layer}", direction.contiguous().numpy().astype(np.float32))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def read_control_vector(path: Path) -> ControlVector:
    """Reads a file, also one with layer 0 or of half precision.

    Raises:
        InteropError: It is not a control vector; the error holds everything that is wrong.
    """
    try:
        reader = GGUFReader(path)
        architecture = _text(reader, "general.architecture")
        hint = _text(reader, f"{ARCHITECTURE}.model_hint")
        tensors = [
            (str(tensor.name), tensor.tensor_type.name, np.array(tensor.data)) for tensor in reader.tensors
        ]
    except FileNotFoundError:
        raise InteropError(str(path), ["there is no such file"]) from None
    except OSError as error:
        raise InteropError(str(path), [f"it can't be read: {error.strerror or error}"]) from error
    except Exception as error:  # the library raises whatever broken bytes lead it to
        raise InteropError(str(path), [f"it is not a sound GGUF file: {error}"]) from error
    faults = []
    if architecture != ARCHITECTURE:
        faults.append(f"its architecture is {architecture!r:.40}; a control vector's is {ARCHITECTURE!r}")
    if not tensors:
        faults.append("it holds no tensor direction.{layer}")
    directions: dict[int, torch.Tensor] = {}
    for name, kind, values in tensors:
        if fault := _fault(name, kind, values):
            faults.append(fault)
        else:
            # The library refuses names that are there twice.
            directions[int(name.partition(".")[2])] = torch.from_numpy(values.astype(np.float32))
    if faults:
        raise InteropError(str(path), faults)
    return ControlVector(hint, directions)


def _fault(name: str, kind: str, values: Any) -> str | None:
    if _DIRECTION.fullmatch(name) is None:
        return f"tensor {name!r:.60}; expected direction.{{layer}}"
    if kind not in _FLOATS:
        return f"{name}: type {kind}; expected one of {', '.join(_FLOATS)}"
    if values.ndim != 1:
        return f"{name}: shape {list(values.shape)}; expected [hidden]"
    return None


def _text(reader: Any, name: str) -> str:
    """A text among the file's fields; empty where it is not there or no text."""
    field = reader.get_field(name)
    if field is None or not field.types or field.types[0] is not GGUFValueType.STRING:
        return ""
    return bytes(field.parts[field.data[0]]).decode(errors="replace")
