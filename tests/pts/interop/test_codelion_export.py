"""`pts export --to codelion-…`: read by the loaders of the programs that the layouts are for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steering_engine.loading import LoadedModel
from steering_engine.model import SteeredModel
from steering_engine.vectors.file import save_vector
from steering_pts.cli.run import RunFolder
from steering_pts.interop.codelion.exporting import reasoning_pattern
from steering_pts.ledger.records import PivotRecord
from tests.support.codelion import PATTERNS, AutoThinkVectors, load_pairs, load_pivots
from tests.support.pts import run_pts
from tests.support.vectors import random_vector


def export(run: RunFolder, *options: str) -> list[str]:
    ended = run_pts("export", str(run.path), *options)
    assert (ended.code, ended.err) == (0, "")
    return ended.out.splitlines()


def pivots_of(run: RunFolder) -> list[PivotRecord]:
    with run.read() as ledger:
        return ledger.pivots()


@pytest.mark.parametrize("version", ["1", "2"])
def test_pivots_are_what_the_loader_of_codelion_expects(finished_run: RunFolder, version: str) -> None:
    events = load_pivots(export(finished_run, "--to", "codelion-pts", "--codelion-version", version))

    pivots = pivots_of(finished_run)
    assert [(e["prob_delta"], e["pivot_token_id"]) for e in events] == [(p.delta, p.token_id) for p in pivots]
    assert {e.get("schema_version") for e in events} == {None if version == "1" else "2.0"}


def test_only_a_helpful_token_has_a_rejected_one(finished_run: RunFolder) -> None:
    events = load_pivots(export(finished_run, "--to", "codelion-pts"))

    expected = [p.rejected_id if p.delta > 0 else None for p in pivots_of(finished_run)]
    assert [event["rejected_token_id"] for event in events] == expected
    assert {type(one) for one in expected} == {int, type(None)}, "the run has both kinds"


def test_what_the_layout_has_no_field_for_is_under_metadata(finished_run: RunFolder) -> None:
    event = json.loads(export(finished_run, "--to", "codelion-pts")[0])

    pivot = pivots_of(finished_run)[0]
    about = event["metadata"]
    assert (about["low"], about["high"], about["q_value"]) == (pivot.low, pivot.high, pivot.q_value)
    assert about["on_path_rollouts"] + about["alternative_rollouts"] > 0
    assert len(about["alternatives"]) == len(pivot.alternatives)


@pytest.mark.parametrize("version", [1, 2])
def test_pairs_are_what_the_loader_of_codelion_expects(finished_run: RunFolder, version: int) -> None:
    pairs = load_pairs(
        export(finished_run, "--to", "codelion-dpo", "--codelion-version", str(version)), version
    )

    expected = [(list(p.chosen_ids), list(p.rejected_ids)) for p in pivots_of(finished_run)]
    assert [(p["metadata"]["chosen_ids"], p["metadata"]["rejected_ids"]) for p in pairs] == expected
    assert ("prob_chosen" in pairs[0]["metadata"]) == (version == 2)


def save_vector_of(run: RunFolder, loaded: LoadedModel, folder: Path) -> tuple[torch.Tensor, float]:
    """A vector file with the contexts of the run's first two pivots; its direction and strength at block 1."""
    with run.read() as ledger:
        contexts = []
        for pivot in ledger.pivots()[:2]:
            completion = ledger.completion(pivot.completion_id)
            assert completion is not None
            contexts.append((*completion.prompt_ids, *completion.ids[: pivot.position]))
    vector = random_vector(loaded, "calm", [1], contexts=contexts, min_match=2)
    folder.mkdir(exist_ok=True)
    save_vector(folder / "calm.safetensors", vector)
    return vector.directions[1], vector.metadata.calibrated_strength[1]


def test_vectors_are_what_autothink_expects(
    finished_run: RunFolder, model: SteeredModel, tmp_path: Path
) -> None:
    direction, strength = save_vector_of(finished_run, model.loaded, tmp_path / "vectors")

    lines = export(finished_run, "--to", "codelion-vectors", "--vectors", str(tmp_path / "vectors"))

    read = AutoThinkVectors(lines, model.loaded.tokenizer)
    assert set(read.by_pattern) <= set(PATTERNS)
    rows: list[dict[str, Any]] = [row for rows in read.by_pattern.values() for row in rows]
    assert len(rows) == len({p.completion_id for p in pivots_of(finished_run)[:2]}) == 2
    for row in rows:
        assert row["steering_layer"] == 1
        assert row["prob_delta"] > 0, "adding every vector goes towards success"
        assert torch.equal(torch.tensor(row["steering_vector"]), strength * direction)
        assert row["cluster_vector"] == row["steering_vector"]


def test_a_vector_without_contexts_is_named_since_it_has_no_rows(
    finished_run: RunFolder, model: SteeredModel, tmp_path: Path
) -> None:
    save_vector_of(finished_run, model.loaded, tmp_path)
    save_vector(tmp_path / "probed.safetensors", random_vector(model.loaded, "probed", [1]))

    ended = run_pts("export", str(finished_run.path), "--to", "codelion-vectors", "--vectors", str(tmp_path))

    assert ended.code == 0
    assert ended.out.count("\n") == 2
    assert ended.err == (
        f"{tmp_path / 'probed.safetensors'}: left out, since it records no contexts, by which its pivots are known\n"
    )


def test_vectors_of_another_run_have_no_rows_here(
    finished_run: RunFolder, model: SteeredModel, tmp_path: Path
) -> None:
    save_vector(tmp_path / "calm.safetensors", random_vector(model.loaded, "calm", [1], contexts=[(5, 6)]))

    ended = run_pts("export", str(finished_run.path), "--to", "codelion-vectors", "--vectors", str(tmp_path))

    assert ended.error().endswith("no vector file holds the context of a pivot of this run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "codelion"], "unknown layout 'codelion'; expected codelion-pts, codelion-dpo"),
        (["--to", "codelion-pts", "--what", "pivots"], "give one of them"),
        (["--to", "codelion-pts", "--codelion-version", "3"], "there is no version 3; expected 1 or 2"),
        (["--to", "codelion-vectors", "--pattern", "luck"], "unknown pattern 'luck'; expected depth_and"),
        (["--to", "gguf"], "name a file or a folder with --out"),
        (["--to", "codelion-vectors", "--vectors", "/nowhere"], "it can't be read: No such file"),
    ],
)
def test_what_can_not_be_exported_is_said_in_one_line(
    finished_run: RunFolder, options: list[str], message: str
) -> None:
    assert message in run_pts("export", str(finished_run.path), *options).error()


@pytest.mark.parametrize(
    ("context", "token", "pattern"),
    [
        ("48 + 9 = 57.", " Wait", "self_correction"),
        ("The answer:", " 7", "numerical_accuracy"),
        ("", " First", "organization"),
        ("", " Alternatively", "exploration"),
        ("so it goes", " on", "depth_and_thoroughness"),
    ],
)
def test_the_kind_of_reasoning_is_told_from_the_words(context: str, token: str, pattern: str) -> None:
    assert reasoning_pattern(context, token) == pattern


@given(st.text(), st.text())
def test_every_text_has_a_kind_of_reasoning(context: str, token: str) -> None:
    assert reasoning_pattern(context, token) in PATTERNS
