"""What is pushed: a folder with the files of an export and its card."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from steering_engine.vectors.schema import SteeringVector
from steering_pts.errors import InteropError
from steering_pts.export import RowTable, lines_of
from steering_pts.interop.exports import vector_files, write_control_vectors
from steering_pts.interop.hub.card import dataset_card, model_card
from steering_pts.interop.hub.upload import PushFolder
from steering_pts.ledger import LedgerReader
from steering_pts.ledger.export import write_atomically

DATA_FILE: Final = "data/train.jsonl"
CARD: Final = "README.md"
_OWN: Final = (CARD, "data", "*.safetensors", "*.gguf")
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
) -> PushFolder:
    """Writes a table of a run with its card.

    Raises:
        LedgerError: It can't be written.
        InteropError: The folder can't be made.
    """
    _clear(path)
    _make(path / "data")
    lines = list(lines_of(table, "jsonl"))
    write_atomically(path / DATA_FILE, lines)
    card = dataset_card(
        ledger, decode, what=_WHAT[what], data_file=DATA_FILE, rows=len(lines), licence=licence
    )
    write_atomically(path / CARD, card.splitlines())
    return PushFolder(path, "dataset")


def vectors_folder(
    path: Path,
    vectors: Path,
    ledger: LedgerReader,
    licence: str,
    *,
    as_gguf: bool,
    with_block_0: bool = False,
) -> PushFolder:
    """Copies vector files, or writes them as control vectors, with their card.

    Raises:
        InteropError: There are none, or they don't fit the format.
        LedgerError: A file can't be written.
    """
    files = vector_files(vectors)
    _clear(path)
    _make(path)
    if as_gguf:
        written = write_control_vectors(vectors, path, with_block_0=with_block_0)
        names = {file.stem: file for file in written}
        listed: list[tuple[Path, SteeringVector]] = [(names[file.stem], vector) for file, vector in files]
    else:
        for file, _ in files:
            shutil.copyfile(file, path / file.name)
        listed = files
    what = _WHAT["gguf" if as_gguf else "vectors"]
    card = model_card(ledger, listed, what=what, licence=licence, has_triggers=not as_gguf)
    write_atomically(path / CARD, card.splitlines())
    return PushFolder(path, "model")


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InteropError(str(path), [f"this folder can't be made: {error.strerror}"]) from error


def _clear(path: Path) -> None:
    """Removes what an earlier push has written; a folder that holds anything else is refused.

    Raises:
        InteropError: It holds something else, which would be uploaded too.
    """
    if not path.exists():
        return
    own = {file for pattern in _OWN for file in path.glob(pattern)}
    if strange := sorted(entry.name for entry in set(path.iterdir()) - own):
        raise InteropError(
            str(path), [f"it holds {strange[0]!r:.60}, which would be uploaded too; name another folder"]
        )
    for entry in own:
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
