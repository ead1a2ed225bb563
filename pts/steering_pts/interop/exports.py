"""The layouts of other tools by name, made of a run or of vector files."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from steering_engine.alias import resolve_model
from steering_engine.errors import ModelError, VectorFileError
from steering_engine.vectors.file import load_vector
from steering_engine.vectors.schema import SteeringVector
from steering_pts.errors import InteropError
from steering_pts.export.columns import RowTable
from steering_pts.interop.codelion.exporting import CodelionExport, Version
from steering_pts.interop.control_vector import control_vector, write_control_vector
from steering_pts.interop.preference import pivotal_pairs, preference_table
from steering_pts.ledger import LedgerReader

TableLayout = Literal["codelion-pts", "codelion-dpo", "codelion-vectors", "trl-dpo"]
TABLE_LAYOUTS: Final[tuple[TableLayout, ...]] = get_args(TableLayout)
CONTROL_VECTORS: Final = "gguf"
LAYOUTS: Final[tuple[str, ...]] = (*TABLE_LAYOUTS, CONTROL_VECTORS)


@dataclass(frozen=True, slots=True)
class TableOptions:
    """How a run is laid out for another tool.

    Attributes:
        version: Version of codelion's data sets.
        created: When the run was finished.
        pattern: The kind of reasoning of every row of vectors; None to tell it from each.
        model: What the run's model is called; None as the run calls it, which may be a folder of this machine.
    """

    version: Version
    created: dt.datetime
    pattern: str | None = None
    model: str | None = None


def layout_table(
    layout: TableLayout,
    ledger: LedgerReader,
    decode: Callable[[Sequence[int]], str],
    vectors: Callable[[], Sequence[SteeringVector]],
    options: TableOptions,
) -> RowTable:
    """A run as a table in another tool's layout.

    Args:
        layout: Which.
        ledger: The run.
        decode: Turns its ids into text, special tokens included.
        vectors: Reads the run's vectors; called only where the layout holds vectors.
        options: How.

    Raises:
        InteropError: The layout does not fit the run, or an option is none of the layout's.
    """
    export = CodelionExport(ledger, decode, options.version, options.created, options.pattern, options.model)
    match layout:
        case "codelion-pts":
            return export.pivots()
        case "codelion-dpo":
            return export.pairs()
        case "codelion-vectors":
            return export.vectors(vectors())
        case "trl-dpo":
            return preference_table(pivotal_pairs(ledger), decode)


def finished_at(pivots: Path) -> dt.datetime:
    """When a run's file of pivots was written; now where it has none yet."""
    try:
        moment = dt.datetime.fromtimestamp(pivots.stat().st_mtime, dt.UTC)
    except OSError:
        moment = dt.datetime.now(dt.UTC)
    return moment.replace(microsecond=0)


def vector_files(path: Path) -> list[tuple[Path, SteeringVector]]:
    """The vector files at a path, each with its content: a file, or all in a folder, by name.

    Raises:
        InteropError: There are none, or some are no vector files; the error names each.
    """
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise InteropError(str(path), ["no vector file (*.safetensors) in this folder"])
    found: list[tuple[Path, SteeringVector]] = []
    faults: list[str] = []
    for file in files:
        try:
            found.append((file, load_vector(file)))
        except VectorFileError as error:
            faults.append(str(error))
        except OSError as error:
            faults.append(f"{file.name}: it can't be read: {error.strerror}")
    if faults:
        raise InteropError(str(path), faults)
    return found


def model_hint_of(vector: SteeringVector) -> str:
    """The architecture of a vector's model, as its configuration calls it.

    Raises:
        InteropError: The model is not to be found, so the architecture has to be named.
    """
    from transformers import AutoConfig  # noqa: PLC0415 -- takes seconds, and only this layout needs it

    source = vector.metadata.model_id
    try:
        return str(AutoConfig.from_pretrained(resolve_model(source)).model_type)
    except (OSError, ValueError, ModelError) as error:
        reason = str(error).splitlines()[0]
        raise InteropError(
            vector.metadata.name,
            [f"its model {source!r} can't be asked for its architecture ({reason:.120}); pass --model-hint"],
        ) from error


def write_control_vectors(
    source: Path,
    out: Path,
    *,
    model_hint: str | None = None,
    blocks: Sequence[int] = (),
    with_block_0: bool = False,
) -> list[Path]:
    """Vector files as GGUF control vectors.

    Args:
        source: A vector file, or a folder of them.
        out: A file for one, a folder (made where it is not there) for a folder of them.
        model_hint: The model's architecture; None to ask the model's configuration.
        blocks: Only these; all if empty.
        with_block_0: Keep block 0, which llama.cpp can't read.

    Returns:
        The files that were written.

    Raises:
        InteropError: A vector does not fit the format; nothing is written then.
        LedgerError: A file can't be written.
    """
    vectors = vector_files(source)
    faults: list[str] = []
    made = []
    for path, vector in vectors:
        try:
            hint = model_hint or model_hint_of(vector)
            made.append((path.stem, control_vector(vector, hint, blocks, with_block_0=with_block_0)))
        except InteropError as error:
            faults += [f"{path.name}: {problem}" for problem in error.problems]
    if faults:
        raise InteropError(str(source), faults)
    if not source.is_dir():
        write_control_vector(out, made[0][1])
        return [out]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InteropError(str(out), [f"this folder can't be made: {error.strerror}"]) from error
    written = []
    for name, directions in made:
        written.append(out / f"{name}.gguf")
        write_control_vector(written[-1], directions)
    return written
