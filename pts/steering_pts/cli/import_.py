"""The command `pts import`: files of other tools as runs and vector files of ours."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.text import Text

from steering_engine.alias import resolve_model
from steering_engine.loading import LoadedModel, load_model
from steering_engine.vectors.file import save_vector
from steering_engine.vectors.schema import SteeringVector
from steering_pts.cli.data_options import DataFormat, SkipBadRows, data_options
from steering_pts.cli.options import AsJson, Device, Dtype, OracleOption
from steering_pts.cli.run import RunFolder
from steering_pts.data import DataOptions
from steering_pts.errors import InteropError
from steering_pts.interop.codelion.reading import read_pairs, read_pivots, read_vectors, the_model
from steering_pts.interop.codelion.vectors_import import vectors_of
from steering_pts.interop.control_vector import read_control_vector
from steering_pts.interop.imported_run import recover_all, write_run
from steering_pts.interop.mending import Mending
from steering_pts.interop.model_vectors import foreign_vector, vector_name
from steering_pts.interop.plain_vectors import HOOK_POINTS, read_plain_vectors
from steering_pts.oracles.registry import make_oracle
from steering_pts.settings import SamplerSettings

SOURCES: Final = ("codelion-pts", "codelion-dpo", "codelion-vectors", "gguf", "safetensors")


@dataclass(frozen=True, slots=True)
class _Imported:
    """What was written, what it holds, and what was mended."""

    paths: tuple[Path, ...]
    holds: str
    mended: tuple[str, ...]


def import_(
    source: Annotated[
        str,
        typer.Argument(help="File to read; of codelion's data sets also a folder, or owner/name on the Hub."),
    ],
    from_: Annotated[str, typer.Option("--from", help=f"Whose layout it has: {', '.join(SOURCES)}.")],
    out: Annotated[
        Path,
        typer.Option(
            help="codelion-pts, codelion-dpo: folder of the new run. codelion-vectors: folder of the vector files. "
            "gguf, safetensors: the vector file."
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="The model that it is for: demo, a folder, or owner/name.")
    ] = None,
    hook_point: Annotated[
        str, typer.Option(help=f"safetensors: where a layer's vector is added: {', '.join(HOOK_POINTS)}.")
    ] = "resid_post",
    block: Annotated[
        int | None, typer.Option(help="codelion-vectors: block of rows that name none.", min=0)
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="gguf, safetensors: the vector's name; the file's if not given.")
    ] = None,
    licence: Annotated[str, typer.Option(help="Licence of the source, written into vector files.")] = "",
    oracle: Annotated[
        str, typer.Option(help="codelion-pts, codelion-dpo: what judges this run's completions later.")
    ] = "math",
    oracle_option: OracleOption = None,
    format: DataFormat = None,
    split: Annotated[str, typer.Option(help="Split of a Hugging Face data set.")] = "train",
    limit: Annotated[int | None, typer.Option(help="Rows to use at most.", min=1)] = None,
    skip_bad_rows: SkipBadRows = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
) -> None:
    """Make a run or vector files of another tool's file, and say what had to be mended.

    Imported pivots are unverified: nothing here has measured their effects, and they are marked so (p = q = 1).
    """
    if from_ not in SOURCES:
        raise InteropError(source, [f"unknown layout {from_!r}; expected {', '.join(SOURCES)}"])
    options = data_options(
        format=format,
        layout=None,
        question_field=None,
        answer_field=None,
        split=split,
        limit=limit,
        skip_bad_rows=skip_bad_rows,
    )
    mending = Mending()
    load = _Loading(device, dtype)
    if from_ in {"codelion-pts", "codelion-dpo"}:
        made = _run(source, from_, out, model, oracle, oracle_option or (), options, mending, load)
    elif from_ == "codelion-vectors":
        rows = read_vectors(source, options, mending)
        loaded = load(the_model(source, model, rows))
        _note_other_model(model, rows[0].model_id, mending)
        made = _save(
            out, vectors_of(source, loaded, rows, mending, layer=block, licence=licence), mending, folder=True
        )
    else:
        if model is None:
            raise InteropError(
                source, ["such a file does not say which model it is for; name it with --model"]
            )
        made = _directions(Path(source), from_, out, load(model), hook_point, name, licence, mending)
    _report(made, as_json=as_json)


@dataclass(frozen=True, slots=True)
class _Loading:
    """Loads a model to the device asked for."""

    device: str
    dtype: str

    def __call__(self, source: str) -> LoadedModel:
        return load_model(resolve_model(source), self.device, self.dtype)


def _run(
    source: str,
    from_: str,
    out: Path,
    model: str | None,
    oracle_name: str,
    oracle_options: Sequence[str],
    options: DataOptions,
    mending: Mending,
    load: _Loading,
) -> _Imported:
    folder = RunFolder(out)
    if folder.pivots.exists():
        raise InteropError(str(out), ["there is a finished run; name another folder with --out"])
    decisions = (read_pivots if from_ == "codelion-pts" else read_pairs)(source, options, mending)
    named = the_model(source, model, decisions)
    _note_other_model(model, decisions[0].model_id, mending)
    with closing(make_oracle(oracle_name, assignments=oracle_options)) as oracle:
        loaded = load(named)
        imported = recover_all(source, loaded, decisions, mending, skip=options.skip_bad_rows)
        origin = json.dumps({"layout": from_, "source": Path(source).name, "decisions": _digest(imported)})
        with write_run(folder.ledger, loaded, named, imported, oracle, SamplerSettings(), origin) as ledger:
            tokenizer = loaded.tokenizer
            ledger.export_pivots_jsonl(folder.pivots, lambda ids: str(tokenizer.decode(list(ids))))
    count = len(imported.decisions)
    return _Imported((out,), f"{count} unverified pivots", mending.sentences())


def _digest(imported: object) -> str:
    return hashlib.sha256(repr(imported).encode()).hexdigest()


def _note_other_model(given: str | None, found: str, mending: Mending) -> None:
    if given is not None and found and given != found:
        mending.note(f"its rows are of model {found!r}; they are read as those of {given!r}", 1)


def _directions(
    source: Path,
    from_: str,
    out: Path,
    loaded: LoadedModel,
    hook_point: str,
    name: str | None,
    licence: str,
    mending: Mending,
) -> _Imported:
    if from_ == "gguf":
        control = read_control_vector(source)
        kind = str(loaded.model.config.model_type)
        if control.model_hint != kind:
            mending.note(
                f"its model_hint is {control.model_hint!r:.40}, the model's architecture {kind!r}", 1
            )
        directions = dict(control.directions)
    else:
        directions = read_plain_vectors(source, hook_point)
    vector = foreign_vector(
        str(source),
        loaded,
        directions,
        name=vector_name(name or source.stem),
        method=from_,
        description=f"imported from {source.name}"[:1000],
        licence=licence,
    )
    return _save(out, [vector], mending, folder=False)


def _save(out: Path, vectors: Sequence[SteeringVector], mending: Mending, *, folder: bool) -> _Imported:
    try:
        if folder:
            out.mkdir(parents=True, exist_ok=True)
        paths = [out / f"{vector.metadata.name}.safetensors" if folder else out for vector in vectors]
        for path, vector in zip(paths, vectors, strict=True):
            save_vector(path, vector)
    except OSError as error:
        raise InteropError(str(out), [f"it can't be written: {error.strerror}"]) from error
    blocks = sorted({block for vector in vectors for block in vector.directions})
    contexts = sum(len(vector.contexts) for vector in vectors)
    holds = (
        f"{len(vectors)} vector{'s' * (len(vectors) != 1)} at block{'s' * (len(blocks) != 1)} "
        f"{', '.join(map(str, blocks))}, {contexts} pivot context{'s' * (contexts != 1)}"
    )
    return _Imported(tuple(paths), holds, mending.sentences())


def _report(made: _Imported, *, as_json: bool) -> None:
    if as_json:
        values = {"written": [str(path) for path in made.paths], "holds": made.holds, "mended": made.mended}
        sys.stdout.write(json.dumps(values, ensure_ascii=False) + "\n")
        return
    console = Console(soft_wrap=True)
    for path in made.paths:
        console.print(Text(str(path)))
    console.print(Text(made.holds))
    for sentence in made.mended:
        console.print(Text(f"mended: {sentence}"))
