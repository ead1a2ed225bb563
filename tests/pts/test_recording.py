"""Recording: the states of a plain forward, streamed to a file that a kill does not spoil."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nnsight.intervention.backends.local import LocalSimulationBackend
from safetensors.torch import load_file, save_file

from steering_engine.loading import LoadedModel, load_model
from steering_engine.model import SteeredModel
from steering_pts.errors import LedgerLockedError, RecordingError
from steering_pts.ledger.lock import WriterLock
from steering_pts.vectors.reading import Reading, batches_of, record_rows
from steering_pts.vectors.recording import PLACES, Recording, RecordingOptions, record
from tests.support.models import save_tiny_model
from tests.support.pivots import event, plain_states, quiet

BLOCKS = (0, 1, 2)
ONE_AT_A_TIME = RecordingOptions(memory_bytes=1)
EVENTS = [event(range(5, 5 + length), 40 + length, 60 + length) for length in (3, 9, 1, 9, 4)]
MATCHED = [quiet(range(70, 80), 3), None, quiet(range(80, 90), 6), None, quiet(range(90, 99), 0)]


def recorded(
    loaded: LoadedModel, path: Path, options: RecordingOptions | None = None, on_done: Any = None
) -> Recording:
    return record(loaded, EVENTS, MATCHED, BLOCKS, path / "activations.safetensors", options, on_done)


def content(path: Path) -> bytes:
    return (path / "activations.safetensors").read_bytes()


# --- which states -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gemma2", "gemma3", "mistral", "qwen3_moe"])
def test_states_are_those_of_a_plain_forward(family: str, tmp_path: Path) -> None:
    loaded = load_model(str(save_tiny_model(tmp_path / "model", family)))
    prefix = tuple(range(5, 20))  # longer than the window of the families that have one
    place = quiet(range(70, 90), 9)

    recording = record(loaded, [event(prefix)], [place], BLOCKS, tmp_path / "activations.safetensors")

    pair = [Reading((*prefix, 40), (14, 15)), Reading((*prefix, 41), (15,))]
    around, before = plain_states(loaded, pair), plain_states(loaded, [Reading.last(place.prefix_ids)])
    for block in BLOCKS:
        assert torch.equal(recording.states("prefix", block)[0], around[block][0])
        assert torch.equal(recording.states("chosen", block)[0], around[block][1])
        assert torch.equal(recording.states("rejected", block)[0], around[block][2])
        assert torch.equal(recording.states("matched", block)[0], before[block][0])


def test_events_of_many_lengths_keep_their_rows(model: SteeredModel, tmp_path: Path) -> None:
    recording = recorded(model.loaded, tmp_path)

    for index, one in enumerate(EVENTS):
        for place, ids in (
            ("prefix", one.prefix_ids),
            ("chosen", (*one.prefix_ids, one.chosen_id)),
            ("rejected", (*one.prefix_ids, one.rejected_id)),
        ):
            expected = plain_states(model.loaded, [Reading.last(ids)])
            for block in BLOCKS:
                found = recording.states(place, block, [index])[0]  # type: ignore[arg-type]
                assert torch.allclose(found, expected[block][0], atol=1e-5)
    assert recording.matched == (0, 2, 4)
    for row, index in enumerate(recording.matched):
        place = MATCHED[index]
        assert place is not None
        expected = plain_states(model.loaded, [Reading.last(place.prefix_ids)])
        assert torch.allclose(recording.states("matched", 2)[row], expected[2][0], atol=1e-5)


def test_any_rows_of_sequences_can_be_read(model: SteeredModel) -> None:
    readings = [Reading(tuple(range(5, 17)), (0, 3, 11)), Reading(tuple(range(30, 42)), (7,))]

    states = record_rows(model.loaded, readings, [0, 2])

    expected = plain_states(model.loaded, readings)
    assert set(states) == {0, 2}
    for block, rows in states.items():
        assert torch.equal(rows, expected[block])


def test_the_residual_norm_is_that_before_the_decision(model: SteeredModel, tmp_path: Path) -> None:
    recording = recorded(model.loaded, tmp_path)

    norms = recording.states("prefix", 2).double().norm(dim=-1)
    assert recording.residual_norm(2) == pytest.approx(norms.mean().item())


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 10**7))
def test_only_sequences_of_one_length_share_a_forward(lengths: list[int], memory: int) -> None:
    batches = batches_of(lengths, TINY, memory)

    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len({lengths[index] for index in batch}) == 1


@given(st.integers(1, 200), st.integers(1, 60))
def test_a_forward_takes_no_more_memory_than_it_may(length: int, most: int) -> None:
    # hidden 32, inner 64, 4 heads, float32: what a token is counted at
    token = 4 * (8 * 32 + 3 * 64 + 4 * length)

    batches = batches_of([length] * 100, TINY, most * token)

    assert max(map(len, batches)) == max(1, min(100, most // length))


class _Config:
    hidden_size, intermediate_size, num_attention_heads = 32, 64, 4

    def get_text_config(self) -> _Config:
        return self


class _Weights:
    config, dtype = _Config(), torch.float32


TINY = LoadedModel("tiny", _Weights(), None, "", "")


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_file_holds_all_places_of_all_blocks_and_nothing_else_is_left(
    model: SteeredModel, tmp_path: Path
) -> None:
    recording = recorded(model.loaded, tmp_path)

    tensors = load_file(tmp_path / "activations.safetensors")
    states = {f"resid.{block}.{place}" for block in BLOCKS for place in PLACES}
    assert set(tensors) == states | {"matched.event", "matched.position"}
    assert tensors["matched.event"].tolist() == [0, 2, 4]
    assert tensors["matched.position"].tolist() == [3, 6, 0]
    for block in BLOCKS:
        for place in PLACES:
            assert torch.equal(tensors[f"resid.{block}.{place}"], recording.states(place, block))
    assert {path.name for path in tmp_path.iterdir()} == {
        "activations.safetensors",
        "activations.safetensors.lock",
    }


def test_without_events_and_matches_the_file_is_sound(model: SteeredModel, tmp_path: Path) -> None:
    recording = record(model.loaded, [], [], [1], tmp_path / "activations.safetensors")

    assert recording.states("matched", 1).shape == (0, 32)
    assert load_file(tmp_path / "activations.safetensors")["resid.1.chosen"].shape == (0, 32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_states_are_stored_as_the_type_asked_for(
    model: SteeredModel, tmp_path: Path, dtype: torch.dtype
) -> None:
    name = str(dtype).removeprefix("torch.")
    whole = recorded(model.loaded, tmp_path)
    expected = {place: whole.states(place, 1) for place in PLACES}

    half = recorded(model.loaded, tmp_path, RecordingOptions(dtype=name))

    assert load_file(tmp_path / "activations.safetensors")["resid.1.prefix"].dtype == dtype
    for place in PLACES:
        assert torch.equal(half.states(place, 1), expected[place].to(dtype).float())


def test_wrong_options_are_told_all_at_once() -> None:
    with pytest.raises(RecordingError) as caught:
        RecordingOptions(dtype="int8", memory_bytes=0)

    assert str(caught.value) == (
        "unknown dtype 'int8' for recording; expected float32, bfloat16, float16; "
        "memory for a forward is 0 bytes; expected at least 1"
    )


def test_a_finished_recording_is_taken_as_it_is(model: SteeredModel, tmp_path: Path) -> None:
    recorded(model.loaded, tmp_path)
    before = (tmp_path / "activations.safetensors").stat()
    tokens: list[int] = []

    recorded(model.loaded, tmp_path, on_done=tokens.append)

    after = (tmp_path / "activations.safetensors").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert len(tokens) == 2 * len(EVENTS) + 3


@pytest.mark.parametrize("what", ["blocks", "events", "type"])
def test_a_recording_of_something_else_is_made_anew(model: SteeredModel, tmp_path: Path, what: str) -> None:
    path = tmp_path / "activations.safetensors"
    recorded(model.loaded, tmp_path)

    events, blocks, options = EVENTS, BLOCKS, RecordingOptions()
    if what == "blocks":
        blocks = (0, 2)
    elif what == "events":
        events = [event((9, 9, 9)), *EVENTS[1:]]
    else:
        options = RecordingOptions(dtype="float16")
    record(model.loaded, events, MATCHED, blocks, path, options)

    fresh = tmp_path / "fresh.safetensors"
    record(model.loaded, events, MATCHED, blocks, fresh, options)
    assert path.read_bytes() == fresh.read_bytes()


def test_a_block_that_was_not_recorded_is_named(model: SteeredModel, tmp_path: Path) -> None:
    recording = record(model.loaded, EVENTS, MATCHED, [2, 0], tmp_path / "activations.safetensors")

    with pytest.raises(RecordingError, match=r"block 1 was not recorded, \[0, 2\] were"):
        recording.states("prefix", 1)


def test_files_that_are_no_recording_are_named(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(b"no tensors at all")
    save_file({"weight": torch.ones(2)}, tmp_path / "other")

    for name, message in {
        "noise": "can't be read",
        "gone": "can't be read",
        "other": "holds no recorded states",
    }.items():
        with pytest.raises(RecordingError, match=message) as caught:
            Recording.open(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_a_file_that_somebody_else_records_to_is_left_alone(model: SteeredModel, tmp_path: Path) -> None:
    lock = WriterLock(tmp_path / "activations.safetensors")
    with pytest.raises(LedgerLockedError):
        recorded(model.loaded, tmp_path)
    lock.release()

    recorded(model.loaded, tmp_path)


# --- interrupted ------------------------------------------------------------------------------------------------------


class StoppedError(Exception):
    """In place of an interrupt."""


@pytest.mark.parametrize("after", [1, 5, 12])
def test_an_interrupted_recording_ends_with_the_same_bytes(
    model: SteeredModel, tmp_path: Path, after: int
) -> None:
    (tmp_path / "whole").mkdir()
    recorded(model.loaded, tmp_path / "whole", ONE_AT_A_TIME)
    done = 0

    def interrupt(_tokens: int) -> None:
        nonlocal done
        done += 1
        if done == after:
            raise StoppedError

    with pytest.raises(StoppedError):
        recorded(model.loaded, tmp_path, ONE_AT_A_TIME, interrupt)
    assert not (tmp_path / "activations.safetensors").exists()
    assert (tmp_path / ".activations.safetensors.journal").stat().st_size == after
    written = (tmp_path / ".activations.safetensors.partial").stat().st_ino

    recorded(model.loaded, tmp_path, ONE_AT_A_TIME)

    assert (tmp_path / "activations.safetensors").stat().st_ino == written
    assert content(tmp_path) == content(tmp_path / "whole")


def test_what_was_begun_for_other_events_is_begun_anew(model: SteeredModel, tmp_path: Path) -> None:
    def interrupt(_tokens: int) -> None:
        raise StoppedError

    path = tmp_path / "activations.safetensors"
    with pytest.raises(StoppedError):
        record(model.loaded, EVENTS[:2], MATCHED[:2], BLOCKS, path, ONE_AT_A_TIME, interrupt)

    recorded(model.loaded, tmp_path)

    (tmp_path / "whole").mkdir()
    recorded(model.loaded, tmp_path / "whole")
    assert content(tmp_path) == content(tmp_path / "whole")


_RECORDING = """
import sys, time
from pathlib import Path
from steering_engine.loading import load_model
from tests.pts.test_recording import ONE_AT_A_TIME, recorded
recorded(load_model(sys.argv[1]), Path(sys.argv[2]), ONE_AT_A_TIME, lambda tokens: time.sleep(0.2))
"""


def test_a_killed_recording_ends_with_the_same_bytes(
    model: SteeredModel, ending_folder: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _RECORDING, str(ending_folder), str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([".", *filter(None, sys.path)])},
    )
    journal = tmp_path / ".activations.safetensors.journal"
    deadline = time.monotonic() + 120
    while not journal.exists() or journal.stat().st_size < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "activations.safetensors").exists()

    recorded(model.loaded, tmp_path, ONE_AT_A_TIME)

    (tmp_path / "whole").mkdir()
    recorded(model.loaded, tmp_path / "whole", ONE_AT_A_TIME)
    assert content(tmp_path) == content(tmp_path / "whole")


# --- elsewhere --------------------------------------------------------------------------------------------------------


def test_what_would_be_sent_elsewhere_gives_the_same_states(
    model: SteeredModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`local` packs a forward as for NDIF, without the project's modules, and runs what comes out of the package."""
    sent = []
    run = LocalSimulationBackend.__call__

    def watched(self: Any, tracer: Any) -> None:
        sent.append(tracer)
        run(self, tracer)

    monkeypatch.setattr(LocalSimulationBackend, "__call__", watched)
    (tmp_path / "here").mkdir()

    there = recorded(model.loaded, tmp_path, RecordingOptions(remote="local"))
    here = recorded(model.loaded, tmp_path / "here")

    assert len(sent) > 1
    for place in PLACES:
        for block in BLOCKS:
            assert torch.equal(there.states(place, block), here.states(place, block))


def test_a_model_in_a_folder_can_not_be_recorded_elsewhere(model: SteeredModel, tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="needs a model by its id on the hub"):
        recorded(model.loaded, tmp_path, RecordingOptions(remote=True))
