"""From a finished run to candidates and vector files."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from steering_engine.model import SteeredModel
from steering_engine.vectors.file import load_vector
from steering_pts.cli.run import RunFolder
from steering_pts.data import Problem
from steering_pts.errors import RecordingError, SearchError
from steering_pts.ledger import Ledger
from steering_pts.ledger.records import PivotRecord
from steering_pts.progress import RunProgress
from steering_pts.vectors.candidates import file_name
from steering_pts.vectors.events import PivotEvent, events_of_run
from steering_pts.vectors.methods import METHODS, Material, split_half_cosine
from steering_pts.vectors.options import VectorOptions, spread_blocks
from steering_pts.vectors.pipeline import VectorReport, make_vectors
from steering_pts.vectors.recording import PLACES, Recording

QUIET = RunProgress(quiet=True)
BLOCKS = (0, 1, 2)
QUICK = VectorOptions(methods=("paired_difference", "pca"))


def never_right(_problem: Problem, _completion: str) -> bool:
    return False


@pytest.fixture
def run(original_run: RunFolder, tmp_path: Path) -> RunFolder:
    """A finished run of its own."""
    shutil.copytree(original_run.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def vectors_of(run: RunFolder, model: SteeredModel, options: VectorOptions = QUICK) -> VectorReport:
    with run.read() as ledger:
        return make_vectors(ledger, model.loaded, run.vectors, options, QUIET)


def events_of(run: RunFolder) -> list[PivotEvent]:
    with run.read() as ledger:
        return events_of_run(ledger)


def keep_pivots(run: RunFolder, pivots: Sequence[PivotRecord]) -> None:
    with run.read() as ledger:
        settings = ledger.settings()
    with Ledger.open(run.ledger, settings) as ledger:
        ledger.write_pivots(pivots)


def pivots_of(run: RunFolder) -> list[PivotRecord]:
    with run.read() as ledger:
        return ledger.pivots()


# --- options ----------------------------------------------------------------------------------------------------------


def test_wrong_options_are_told_all_at_once() -> None:
    with pytest.raises(SearchError) as caught:
        VectorOptions(min_events=0, methods=("magic",), group_by="colour")  # type: ignore[arg-type]

    assert str(caught.value) == (
        "unknown method 'magic'; expected paired_difference, context_difference, pca, optimised; "
        "can't group by 'colour'; expected clusters or tokens; min_events is 0; expected at least 1"
    )


@pytest.mark.parametrize("count", range(1, 9))
def test_all_blocks_of_a_small_model_compete(count: int) -> None:
    assert spread_blocks(count) == tuple(range(count))


@given(st.integers(9, 200))
def test_of_a_large_model_at_most_eight_blocks_compete_and_none_of_the_last_quarter(count: int) -> None:
    blocks = spread_blocks(count)

    assert len(blocks) <= 8
    assert list(blocks) == sorted(set(blocks))
    assert blocks[0] == 0
    assert blocks[-1] <= count * 3 / 4


# --- candidates -------------------------------------------------------------------------------------------------------


def test_events_are_the_pivots_of_a_run(finished_run: RunFolder) -> None:
    with finished_run.read() as ledger:
        events, pivots = events_of_run(ledger), ledger.pivots()
        completions = {completion.id: completion for completion in ledger.completions()}

    assert len(events) == len(pivots)
    for one, pivot in zip(events, pivots, strict=True):
        completion = completions[pivot.completion_id]
        assert one.prefix_ids == (*completion.prompt_ids, *completion.ids[: pivot.position])
        assert (one.chosen_id, one.rejected_id) == (pivot.chosen_id, pivot.rejected_id)
        assert (one.effect, one.weight) == (pivot.delta, abs(pivot.delta))
        assert (one.problem_id, one.completion_id, one.position) == (
            pivot.problem_id,
            pivot.completion_id,
            pivot.position,
        )


@pytest.fixture(scope="module")
def everything(
    original_run: RunFolder, model: SteeredModel, tmp_path_factory: pytest.TempPathFactory
) -> tuple[VectorReport, RunFolder]:
    """All methods at all blocks, of one group of all pivots."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "everything")
    shutil.copytree(original_run.path, folder.path)
    events = events_of(folder)
    report = vectors_of(folder, model, VectorOptions(group_by="tokens", min_events=min(4, len(events))))
    return report, folder


def test_there_is_a_file_for_every_group_and_method_with_all_blocks(
    everything: tuple[VectorReport, RunFolder],
) -> None:
    report, run = everything

    assert report.candidates
    for group in report.candidates:
        for method, path in group.files.items():
            vector = load_vector(path)
            assert path == run.candidates / f"{group.name}-{method.replace('_', '-')}.safetensors"
            assert (vector.metadata.name, vector.metadata.method) == (path.stem, method)
            assert set(vector.directions) == set(BLOCKS)
            assert vector.metadata.event_count == group.events
            assert vector.metadata.context_min_match == group.min_match
            assert bool(vector.contexts) == bool(group.min_match)


def test_a_file_holds_what_the_method_makes_of_the_recorded_states(
    everything: tuple[VectorReport, RunFolder], model: SteeredModel
) -> None:
    report, run = everything
    recording = Recording.open(run.activations)
    events = events_of(run)
    group = report.candidates[0]
    at = [index for index, one in enumerate(events) if one in grouped(run, group.events)]

    for method in ("paired_difference", "context_difference", "pca"):  # the one that learns takes long
        vector = group.load(method)
        for block in BLOCKS:
            prefix, chosen, rejected = (
                recording.states(place, block, at) for place in ("prefix", "chosen", "rejected")
            )
            material = Material(
                model.loaded,
                [events[index] for index in at],
                block,
                prefix,
                chosen,
                rejected,
                recording.residual_norm(block),
            )
            expected = METHODS[method](material)
            assert torch.allclose(vector.directions[block], expected / expected.norm(), atol=1e-5)
            assert vector.metadata.calibrated_strength[block] == pytest.approx(
                expected.norm().item(), rel=1e-4
            )
            assert vector.metadata.residual_norm[block] == pytest.approx(recording.residual_norm(block))
            reliability = split_half_cosine(METHODS[method], material)
            assert vector.metadata.split_half_cosine.get(block) == pytest.approx(reliability, abs=1e-4)


def grouped(run: RunFolder, size: int) -> list[PivotEvent]:
    """The decisions of the group of that size, by their tokens."""
    events = events_of(run)
    pairs = [(one.chosen_id, one.rejected_id) for one in events]
    by_pair = [[e for e, p in zip(events, pairs, strict=True) if p == pair] for pair in dict.fromkeys(pairs)]
    return next((group for group in by_pair if len(group) == size), events)


def test_the_index_names_the_files(everything: tuple[VectorReport, RunFolder]) -> None:
    report, run = everything

    index = json.loads((run.candidates / "index.json").read_text())
    digests = {load_vector(path).metadata.source_run_digest for path in run.candidates.glob("*.safetensors")}
    assert index["schema"] == "steering.candidates/1"
    assert {index["run_digest"]} == digests
    assert index["groups"] == [
        {
            "name": group.name,
            "events": group.events,
            "files": {method: path.name for method, path in group.files.items()},
        }
        for group in report.candidates
    ]
    named = {name for group in index["groups"] for name in group["files"].values()}
    assert named == {path.name for path in run.candidates.glob("*.safetensors")}


def test_a_vector_file_says_where_it_comes_from(run: RunFolder, model: SteeredModel) -> None:
    report = vectors_of(run, model, dataclasses.replace(QUICK, licence="CC0-1.0"))

    with run.read() as ledger:
        settings = ledger.settings()
    metadata = load_vector(report.candidates[0].files["pca"]).metadata
    loaded = model.loaded
    assert (metadata.method, metadata.hook_point) == ("pca", "resid_post")
    assert metadata.model_id == loaded.source
    assert metadata.model_config_digest == loaded.config_digest
    assert metadata.tokenizer_digest == loaded.tokenizer_digest
    assert (metadata.hidden_size, metadata.block_count) == (32, 3)
    assert len(metadata.source_run_digest) == 64
    assert metadata.discovery_settings == settings
    assert metadata.held_out_lift is None
    assert metadata.licence == "CC0-1.0"


def test_the_recorded_states_lie_beside_the_candidates(run: RunFolder, model: SteeredModel) -> None:
    vectors_of(run, model, dataclasses.replace(QUICK, blocks=(2, 0, 2)))

    names = {name for name in load_file(run.activations) if name.startswith("resid")}
    assert names == {f"resid.{block}.{place}" for block in (0, 2) for place in PLACES}


def test_a_method_that_makes_no_vector_is_left_out_with_the_reason(
    run: RunFolder, model: SteeredModel
) -> None:
    keep_pivots(run, [dataclasses.replace(pivot, delta=0.4, low=0.2, high=0.5) for pivot in pivots_of(run)])

    report = vectors_of(run, model, VectorOptions(methods=("context_difference", "pca"), min_events=1))

    assert [set(group.files) for group in report.candidates] == [{"pca"}] * len(report.candidates)
    for group in report.candidates:
        (sentence,) = (one for one in report.left_out if one.startswith(f"{group.name}: "))
        assert f"all {group.events} here turned out for the better" in sentence


def test_a_name_that_is_too_long_keeps_its_method() -> None:
    assert file_name("operand", "paired_difference") == "operand-paired-difference"
    assert file_name("a" * 63, "optimised") == "a" * 53 + "-optimised"


def test_what_was_made_is_not_made_again(run: RunFolder, model: SteeredModel) -> None:
    (group, *_) = vectors_of(run, model).candidates
    (run.candidates / "index.json").unlink()  # as if it had been interrupted,
    group.files["pca"].unlink()  # with one file still to be made
    before = group.files["paired_difference"].stat()
    lost = group.metadata["pca"].calibrated_strength

    (again, *_) = vectors_of(run, model).candidates

    after = again.files["paired_difference"].stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert again.metadata["pca"].calibrated_strength == lost
    assert (run.candidates / "index.json").is_file()


def test_a_file_that_was_changed_or_made_otherwise_is_made_again(run: RunFolder, model: SteeredModel) -> None:
    (group, *_) = vectors_of(run, model).candidates
    shutil.copy(group.files["pca"], group.files["paired_difference"])

    (again, *_) = vectors_of(run, model).candidates
    (other, *_) = vectors_of(run, model, dataclasses.replace(QUICK, licence="CC0-1.0")).candidates

    assert again.load("paired_difference").metadata.method == "paired_difference"
    assert {one.licence for one in other.metadata.values()} == {"CC0-1.0"}


def test_candidates_that_are_no_more_are_removed(run: RunFolder, model: SteeredModel) -> None:
    vectors_of(run, model)

    vectors_of(run, model, VectorOptions(methods=("pca",)))

    assert {path.stem.split("-")[-1] for path in run.candidates.glob("*.safetensors")} == {"pca"}
    assert {path.name.split("-")[-1] for path in run.candidates.glob(".*.made.json")} == {"pca.made.json"}


def test_a_cleared_run_keeps_nothing_of_its_vectors(run: RunFolder, model: SteeredModel) -> None:
    vectors_of(run, model)
    (run.path / ".activations.safetensors.partial").touch()  # as if another had been begun

    run.clear()

    assert {path.name for path in run.path.iterdir()} == {
        "ledger.sqlite.lock",
        "activations.safetensors.lock",
    }


def test_a_folder_that_can_not_be_written_is_named(run: RunFolder, model: SteeredModel) -> None:
    run.candidates.write_text("in the way")

    with pytest.raises(RecordingError, match="candidates can't be written: File exists"):
        vectors_of(run, model)


# --- runs of all sizes ------------------------------------------------------------------------------------------------


def test_a_run_without_pivots_says_so_and_writes_nothing(run: RunFolder, model: SteeredModel) -> None:
    keep_pivots(run, [])

    report = vectors_of(run, model)

    assert report == VectorReport(
        (), ("the run confirmed no pivots, so there is nothing to make vectors of",)
    )
    assert not run.candidates.exists()
    assert not run.activations.exists()


def test_one_pivot_is_too_few_by_default(run: RunFolder, model: SteeredModel) -> None:
    keep_pivots(run, pivots_of(run)[:1])

    report = vectors_of(run, model)

    assert report == VectorReport((), ("1 decisions of kinds that were seen fewer than 4 times",))
    assert json.loads((run.candidates / "index.json").read_text())["groups"] == []


def test_one_pivot_makes_vectors_without_reliability(run: RunFolder, model: SteeredModel) -> None:
    keep_pivots(run, pivots_of(run)[:1])

    report = vectors_of(run, model, VectorOptions(min_events=1))

    (group,) = report.candidates
    assert set(group.files) == set(METHODS) - {"context_difference"}
    assert all(one.split_half_cosine == {} for one in group.metadata.values())
    assert torch.allclose(
        group.load("pca").directions[1], group.load("paired_difference").directions[1], atol=1e-5
    )


def test_five_hundred_pivots_are_no_problem(run: RunFolder, model: SteeredModel) -> None:
    with run.read() as ledger:
        completions = ledger.completions()
    (pattern, *_) = pivots_of(run)
    ids = [(one, position) for one in completions for position in range(len(one.ids))]
    keep_pivots(
        run,
        [
            dataclasses.replace(
                pattern,
                completion_id=one.id,
                problem_id=one.problem_id,
                position=position,
                ids=(one.ids[position],),
                chosen_ids=(one.ids[position],),
                rejected_ids=((one.ids[position] + 1) % 200 + 2,),
            )
            for one, position in ids[:500]
        ],
    )

    report = vectors_of(run, model)

    assert len(ids) >= 200
    placed = sum(group.events for group in report.candidates)
    assert placed >= len(ids[:500]) / 2
    assert all(len(group.files) == 2 for group in report.candidates)


def test_a_pair_that_is_no_difference_gives_no_file(run: RunFolder, model: SteeredModel) -> None:
    keep_pivots(run, [dataclasses.replace(one, chosen_ids=one.rejected_ids) for one in pivots_of(run)])

    report = vectors_of(run, model, dataclasses.replace(QUICK, group_by="tokens", min_events=1))

    assert (report.vectors, report.candidates) == ((), ())
    assert "pivot-1: paired_difference: the direction came out as zero, up to rounding" in report.left_out
    assert list(run.vectors.glob("*")) == []


# --- vectors ----------------------------------------------------------------------------------------------------------


def test_without_validation_the_first_method_at_the_middle_block_is_written(
    run: RunFolder, model: SteeredModel
) -> None:
    report = vectors_of(run, model)

    assert len(report.vectors) == len(report.candidates)
    for made, group in zip(report.vectors, report.candidates, strict=True):
        vector, candidate = load_vector(made.path), group.load("paired_difference")
        assert (made.name, made.path) == (group.name, run.vectors / f"{group.name}.safetensors")
        assert (made.method, made.block) == ("paired_difference", 1)
        assert list(vector.directions) == [1]
        assert torch.equal(vector.directions[1], candidate.directions[1])
        assert vector.metadata.calibrated_strength == {1: candidate.metadata.calibrated_strength[1]}
        assert vector.metadata.residual_norm == {1: candidate.metadata.residual_norm[1]}
        assert vector.contexts == candidate.contexts


def test_vectors_are_the_same_every_time(run: RunFolder, model: SteeredModel, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "other")

    one, other = (
        load_vector(vectors_of(folder, model).vectors[0].path)
        for folder in (run, RunFolder(tmp_path / "other"))
    )

    assert torch.equal(one.directions[1], other.directions[1])
    assert one.contexts == other.contexts


def test_vectors_that_are_not_made_again_are_removed_and_strange_files_are_kept(
    run: RunFolder, model: SteeredModel
) -> None:
    (made, *_) = vectors_of(run, model).vectors
    foreign = run.vectors / "foreign.safetensors"
    foreign.write_bytes(b"no vector at all")

    vectors_of(run, model, VectorOptions(min_events=1000))

    assert not made.path.exists()
    assert foreign.exists()
