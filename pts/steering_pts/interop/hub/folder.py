"""What is pushed: a folder with the files of an export and its card."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from steering_engine.vectors.file import save_vector
from steering_engine.vectors.schema import SteeringVector
from steering_pts.export import RowTable, lines_of
from steering_pts.interop.exports import vector_files, write_control_vectors
from steering_pts.interop.hub.card import dataset_card, model_card
from steering_pts.interop.hub.naming import shown_vector
from steering_pts.interop.hub.replacing import replacing_folder
from steering_pts.interop.hub.upload import PushFolder
from steering_pts.ledger import LedgerReader
from steering_pts.ledger.export import write_atomically

DATA_FILE: Final = "data/train.jsonl"
CARD: Final = "README.md"
_WHAT: Final = {
    "codelion-pts": (
        "Each row is a pivotal token, in the layout of codelion/pts; what that has no field for is under `metadata`."
    ),
    "codelion-dpo": (
        "Each row is a preference between two tokens after the same prefix, in the layout of codelion/pts-dpo-pairs."
    ),
    "codelion-vectors": (
        "Each row is a pivotal token with a steering vector, in the layout of codelion/pts-steering-vectors."
    ),
    "trl-dpo": (
        "Each row is a preference between two tokens after the same prefix, for TRL: `prompt_ids`, `chosen_ids` and "
        "`rejected_ids` are exact. TRL's own trainer would append an end-of-sequence token to the texts."
    ),
    "vectors": (
        "Safetensors of the schema steering.vector/1: directions, and the contexts, probes or centroids that say when "
        "to act."
    ),
    "gguf": "GGUF control vectors for llama.cpp, repeng and EasySteer, as long as calibrated.",
}


def dataset_folder(
    path: Path,
    what: str,
    table: RowTable,
    ledger: LedgerReader,
    decode: Callable[[Sequence[int]], str],
    licence: str,
    sources: Sequence[Path] = (),
) -> PushFolder:
    """Writes a table of a run with its card.

    Args:
        path: The folder; see `replacing_folder` for what it may hold.
        what: The layout.
        table: The rows.
        ledger: The run.
        decode: Turns its ids into text, special tokens included.
        licence: SPDX identifier.
        sources: Files and folders that the folder must lie apart from.

    Raises:
        LedgerError: It can't be written.
        InteropError: The folder can't be made, or holds what was not written so.
    """
    with replacing_folder(path, sources) as new:
        (new / DATA_FILE).parent.mkdir()
        lines = list(lines_of(table, "jsonl"))
        write_atomically(new / DATA_FILE, lines)
        card = dataset_card(
            ledger, decode, what=_WHAT[what], data_file=DATA_FILE, rows=len(lines), licence=licence
        )
        write_atomically(new / CARD, card.splitlines())
    return PushFolder(path, "dataset")


def vectors_folder(
    path: Path,
    vectors: Path,
    ledger: LedgerReader,
    licence: str,
    *,
    as_gguf: bool,
    model_hint: str | None = None,
    with_block_0: bool = False,
) -> PushFolder:
    """Copies vector files, or writes them as control vectors, with their card.

    A file that names a folder of this machine as its model is written with the folder's name alone.

    Args:
        path: The folder; see `replacing_folder` for what it may hold.
        vectors: A vector file, or a folder of them.
        ledger: The run.
        licence: SPDX identifier.
        as_gguf: As control vectors.
        model_hint: The architecture that control vectors name; None to ask the model's configuration.
        with_block_0: Keep block 0 of control vectors, which llama.cpp can't read.

    Raises:
        InteropError: There are none, or they don't fit the format; the folder can't be made, or holds what was not
            written so.
        LedgerError: A file can't be written.
    """
    with replacing_folder(path, [vectors]) as new:
        files = vector_files(vectors)
        if as_gguf:
            out = new if vectors.is_dir() else new / f"{vectors.stem}.gguf"
            written = write_control_vectors(vectors, out, model_hint=model_hint, with_block_0=with_block_0)
            names = {file.stem: file for file in written}
            listed: list[tuple[Path, SteeringVector]] = [(names[file.stem], vector) for file, vector in files]
        else:
            for file, vector in files:
                _put(file, vector, new / file.name)
            listed = files
        what = _WHAT["gguf" if as_gguf else "vectors"]
        card = model_card(ledger, listed, what=what, licence=licence, has_triggers=not as_gguf)
        write_atomically(new / CARD, card.splitlines())
    return PushFolder(path, "model")


def _put(file: Path, vector: SteeringVector, out: Path) -> None:
    shown = shown_vector(vector)
    if shown is None:
        shutil.copyfile(file, out)  # byte for byte, so that its digest stays
    else:
        save_vector(out, shown)
