from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from steering_engine.blocks import find_blocks
from steering_engine.loading import LoadedModel, load_model
from steering_engine.model import SteeredModel
from steering_engine.steering.contexts import MAX_CONTEXT_TOKENS
from steering_engine.vectors.file import load_vector
from steering_pts.cli.run import ModelChoice, RunFolder, discover_into, oracle_for, rollouts
from steering_pts.data import DataOptions, Problem, load_problems
from steering_pts.ledger import Ledger
from steering_pts.ledger.records import PivotRecord
from steering_pts.oracles.registry import make_oracle
from steering_pts.progress import RunProgress
from steering_pts.prompts import encode_prompts
from steering_pts.settings import SamplerSettings, SearchSettings
from steering_pts.vectors.events import (
    EventGroup,
    PivotEvent,
    events_of_run,
    group_events,
    shared_suffix,
)
from steering_pts.vectors.methods import optimised, paired_difference, split_half_cosine
from steering_pts.vectors.pipeline import VectorOptions, VectorReport, make_vectors, spread_blocks
from steering_pts.vectors.recording import PLACES, record
from steering_pts.vectors.selection import Validation
from tests.support.models import save_tiny_model
from tests.support.pts import SAMPLER, make_problems, rollouts_of

QUIET = RunProgress(quiet=True)
BLOCKS = (0, 1, 2)


def event(prefix: Sequence[int], chosen: int = 40, rejected: int = 41, weight: float = 0.5) -> PivotEvent:
    return PivotEvent(tuple(prefix), chosen, rejected, weight)


def never_right(_problem: Problem, _completion: str) -> bool:
    return False


# --- recording --------------------------------------------------------------------------------------------------------


def hooked_states(loaded: LoadedModel, rows: Sequence[Sequence[int]]) -> dict[int, torch.Tensor]:
    """resid_post of the last row at every block `[rows, hidden]`, from a plain forward with hooks."""
    states: dict[int, torch.Tensor] = {}

    def keep(block: int) -> Any:
        def hook(_module: torch.nn.Module, _args: Any, output: Any) -> None:
            states[block] = (output[0] if isinstance(output, tuple) else output)[:, -1].detach().clone()

        return hook

    handles = [b.register_forward_hook(keep(i)) for i, b in enumerate(find_blocks(loaded.model))]
    with torch.no_grad():
        loaded.model(torch.tensor([list(row) for row in rows]))
    for handle in handles:
        handle.remove()
    return states


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "gemma3"])
def test_recorded_states_are_those_of_a_plain_forward(family: str, tmp_path: Path) -> None:
    loaded = load_model(str(save_tiny_model(tmp_path, family)))
    prefix = (5, 6, 7, 8)

    recording = record(loaded, [event(prefix)], BLOCKS)

    before = hooked_states(loaded, [prefix])
    chosen, rejected = (hooked_states(loaded, [(*prefix, 40), (*prefix, 41)]) for _ in range(2))
    for block in BLOCKS:
        assert torch.equal(recording.states["prefix"][block][0], before[block][0])
        assert torch.equal(recording.states["chosen"][block][0], chosen[block][0])
        assert torch.equal(recording.states["rejected"][block][0], rejected[block][1])


def test_events_of_many_lengths_keep_their_rows(model: SteeredModel) -> None:
    events = [event(range(5, 5 + length), 40 + length, 60 + length) for length in (3, 9, 1, 9, 4)]

    recording = record(model.loaded, events, [1])

    for index, one in enumerate(events):
        for place, ids in (
            ("prefix", one.prefix_ids),
            ("chosen", (*one.prefix_ids, one.chosen_id)),
            ("rejected", (*one.prefix_ids, one.rejected_id)),
        ):
            expected = hooked_states(model.loaded, [ids])[1][0]
            assert torch.allclose(recording.states[place][1][index], expected, atol=1e-5)


def test_recording_tells_of_every_sequence(model: SteeredModel) -> None:
    lengths: list[int] = []

    record(model.loaded, [event((5, 6)), event((5, 6, 7))], [0], lengths.append)

    assert sorted(lengths) == [2, 3, 3, 3, 4, 4]


def test_the_residual_norm_is_that_before_the_decision(model: SteeredModel) -> None:
    recording = record(model.loaded, [event((5, 6)), event((7, 8))], [2])

    norms = recording.states["prefix"][2].double().norm(dim=-1)
    assert recording.residual_norm(2) == pytest.approx(norms.mean().item())


def test_recorded_states_are_written_as_they_are(model: SteeredModel, tmp_path: Path) -> None:
    recording = record(model.loaded, [event((5, 6)), event((7, 8))], [0, 2])

    recording.save(tmp_path / "activations.safetensors")

    tensors = load_file(tmp_path / "activations.safetensors")
    assert set(tensors) == {f"resid.{block}.{place}" for block in (0, 2) for place in PLACES}
    for name, tensor in tensors.items():
        _, block, place = name.split(".")
        assert torch.equal(tensor, recording.states[place][int(block)])
    assert [path.name for path in tmp_path.iterdir()] == ["activations.safetensors"]


# --- methods ----------------------------------------------------------------------------------------------------------


def test_the_paired_difference_is_the_weighted_mean_of_differences() -> None:
    chosen = torch.tensor([[3.0, 1.0], [1.0, 5.0]])
    rejected = torch.tensor([[1.0, 1.0], [1.0, 1.0]])

    direction = paired_difference(chosen, rejected, torch.tensor([0.75, 0.25]))

    assert direction.tolist() == [1.5, 1.0]


def test_weights_count_by_their_ratio_alone() -> None:
    chosen, rejected = torch.eye(2), torch.zeros(2, 2)

    one, other = (paired_difference(chosen, rejected, torch.tensor(w)) for w in ([0.25, 0.75], [1.0, 3.0]))

    assert torch.equal(one, other)


def preference(loaded: LoadedModel, events: Sequence[PivotEvent], block: int, vector: torch.Tensor) -> float:
    """Weighted mean of log p(chosen) - log p(rejected) with the vector added at the decisions' rows."""
    total = 0.0

    def add(_module: torch.nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        steered = output.clone()
        steered[:, -1] += vector
        return steered

    for one in events:
        handle = find_blocks(loaded.model)[block].register_forward_hook(add)
        with torch.no_grad():
            logprobs = loaded.model(torch.tensor([one.prefix_ids])).logits[0, -1].double().log_softmax(-1)
        handle.remove()
        total += one.weight * (logprobs[one.chosen_id] - logprobs[one.rejected_id]).item()
    return total / sum(one.weight for one in events)


EVENTS = [event((5, 6, 7)), event((9, 8), 40, 41, 0.3), event((11, 12, 13, 14, 15), 50, 51, 0.2)]


@pytest.mark.parametrize("block", BLOCKS)
def test_the_optimised_vector_raises_the_preference_for_the_better_token(
    model: SteeredModel, block: int
) -> None:
    loaded = model.loaded
    norm = record(loaded, EVENTS, [block]).residual_norm(block)

    vector = optimised(loaded, EVENTS, block, norm)

    before = preference(loaded, EVENTS, block, torch.zeros_like(vector))
    assert preference(loaded, EVENTS, block, vector) > before + 0.05
    assert preference(loaded, EVENTS, block, -vector) < before


def test_the_optimised_vector_is_deterministic(model: SteeredModel) -> None:
    one, other = (optimised(model.loaded, EVENTS, 1, 1.0) for _ in range(2))

    assert torch.equal(one, other)


def test_learning_a_vector_leaves_the_model_as_it_was(model: SteeredModel) -> None:
    loaded = model.loaded
    ids = torch.tensor([[5, 6, 7, 8]])
    before = loaded.model(ids).logits
    weights = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}

    optimised(loaded, EVENTS, 0, 1.0, steps=3)

    assert torch.equal(loaded.model(ids).logits, before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.model.state_dict().items())
    assert all(parameter.grad is None for parameter in loaded.model.parameters())


def test_halves_that_agree_have_cosine_one_and_opposite_ones_minus_one() -> None:
    ones = torch.ones(4)

    assert split_half_cosine(lambda rows: ones * len(rows), 5) == pytest.approx(1)
    assert split_half_cosine(lambda rows: ones if 0 in rows else -ones, 5) == pytest.approx(-1)


def test_halves_are_the_even_and_the_odd_events() -> None:
    asked: list[list[int]] = []

    def make(rows: list[int]) -> torch.Tensor:
        asked.append(rows)
        return torch.ones(2)

    split_half_cosine(make, 5)

    assert asked == [[0, 2, 4], [1, 3]]


def test_one_event_has_no_halves() -> None:
    assert split_half_cosine(lambda _rows: torch.ones(2), 1) is None


# --- groups -----------------------------------------------------------------------------------------------------------


def decode(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


ids = st.lists(st.integers(0, 3), max_size=6)


@given(st.lists(ids, min_size=1, max_size=5))
def test_the_shared_suffix_is_shared_and_no_longer_one_is(contexts: list[list[int]]) -> None:
    length = shared_suffix(contexts)

    assert len({tuple(context[len(context) - length :]) for context in contexts}) == 1
    longer = {tuple(context[-length - 1 :]) for context in contexts}
    assert length == min(map(len, contexts)) or len(longer) > 1


@given(ids, st.lists(ids, min_size=1, max_size=5))
def test_a_common_end_is_always_found(end: list[int], contexts: list[list[int]]) -> None:
    assert shared_suffix([[*context, *end] for context in contexts]) >= len(end)


def test_decisions_between_the_same_two_tokens_are_one_group() -> None:
    events = [event((i, 7, 8), 1, 2) for i in range(4)] + [event((i, 7, 8), 3, 4) for i in range(5)]

    groups, left_out = group_events(events, 4, decode)

    assert [(len(group.events), group.min_match) for group in groups] == [(5, 2), (4, 2)]
    assert {(e.chosen_id, e.rejected_id) for e in groups[0].events} == {(3, 4)}
    assert left_out == []


def test_rare_decisions_at_the_same_place_are_one_group() -> None:
    events = [event((9, 6, 7, 8), i, i + 1) for i in range(4)]

    groups, left_out = group_events(events, 4, decode)

    assert groups == [EventGroup(tuple(events), 4)]
    assert left_out == []


def test_decisions_without_a_shared_context_are_left_out_with_the_reason() -> None:
    events = [event((i, 100 + i, 8), 65, 66) for i in range(4)]

    groups, left_out = group_events(events, 4, decode)

    assert groups == []
    (sentence,) = left_out
    assert sentence.startswith("4 decisions between 'A' and 'B': fewer than 2 equal tokens stand before all")


def test_what_is_too_rare_is_counted() -> None:
    groups, left_out = group_events([event((i, i), i, i + 1) for i in range(3)], 4, decode)

    assert groups == []
    assert left_out == ["3 decisions of kinds that were seen fewer than 4 times"]


def test_a_context_of_one_token_makes_no_group() -> None:
    groups, left_out = group_events([event((8,), i, i + 1) for i in range(4)], 4, decode)

    assert groups == []
    assert len(left_out) == 1


@given(
    st.lists(
        st.builds(
            event, st.lists(st.integers(5, 7), min_size=1, max_size=4), st.integers(0, 2), st.integers(3, 4)
        ),
        max_size=20,
    ),
    st.integers(1, 4),
)
def test_every_group_is_large_enough_and_ends_alike(events: list[PivotEvent], min_events: int) -> None:
    groups, _ = group_events(events, min_events, decode)

    grouped = [id(e) for group in groups for e in group.events]
    assert len(set(grouped)) == len(grouped)
    for group in groups:
        assert len(group.events) >= min_events
        assert group.min_match == shared_suffix([e.context for e in group.events]) >= 2


def test_a_context_keeps_the_last_ids_only() -> None:
    assert event(range(200)).context == tuple(range(200 - MAX_CONTEXT_TOKENS, 200))


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


# --- from a run to files ----------------------------------------------------------------------------------------------


@pytest.fixture
def run(finished_run: RunFolder, tmp_path: Path) -> RunFolder:
    """A finished run of its own."""
    shutil.copytree(finished_run.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def vectors_of(
    run: RunFolder,
    model: SteeredModel,
    options: VectorOptions,
    problems: Sequence[Problem] = (),
    oracle: str = "tests.pts.test_vectors:never_right",
) -> VectorReport:
    prompts = encode_prompts(model, problems, raw=False)
    with rollouts_of(model) as source, run.read() as ledger:
        validation = Validation(model, source, make_oracle(oracle), problems, prompts, SAMPLER, 0, QUIET)
        return make_vectors(ledger, validation, run.vectors, options, QUIET)


def test_events_are_the_pivots_of_a_run(finished_run: RunFolder) -> None:
    with finished_run.read() as ledger:
        events, pivots = events_of_run(ledger), ledger.pivots()
        completions = {completion.id: completion for completion in ledger.completions()}

    assert len(events) == len(pivots)
    for one, pivot in zip(events, pivots, strict=True):
        completion = completions[pivot.completion_id]
        assert one.prefix_ids == (*completion.prompt_ids, *completion.ids[: pivot.position])
        assert (one.chosen_id, one.rejected_id) == (pivot.chosen_id, pivot.rejected_id)
        assert one.weight == abs(pivot.delta)


def test_without_validation_the_paired_difference_at_the_middle_block_is_written(
    run: RunFolder, model: SteeredModel
) -> None:
    report = vectors_of(run, model, VectorOptions())

    (made,) = report.vectors
    with run.read() as ledger:
        events = events_of_run(ledger)
    recording = record(model.loaded, events, BLOCKS)
    expected = paired_difference(
        recording.states["chosen"][1],
        recording.states["rejected"][1],
        torch.tensor([one.weight for one in events]),
    )
    vector = load_vector(made.path)
    assert (made.name, made.path, made.lift) == ("pivot-1", run.vectors / "pivot-1.safetensors", None)
    assert list(vector.directions) == [1]
    assert torch.allclose(vector.directions[1], expected / expected.norm(), atol=1e-6)
    assert vector.metadata.calibrated_strength[1] == pytest.approx(expected.norm().item(), rel=1e-5)


def test_a_vector_file_says_where_it_comes_from(run: RunFolder, model: SteeredModel) -> None:
    (made,) = vectors_of(run, model, VectorOptions(licence="CC0-1.0")).vectors

    with run.read() as ledger:
        settings, events = ledger.settings(), events_of_run(ledger)
    vector = load_vector(made.path)
    metadata = vector.metadata
    loaded = model.loaded
    assert (metadata.method, metadata.hook_point) == ("paired_difference", "resid_post")
    assert metadata.model_id == loaded.source
    assert metadata.model_config_digest == loaded.config_digest
    assert metadata.tokenizer_digest == loaded.tokenizer_digest
    assert (metadata.hidden_size, metadata.block_count) == (32, 3)
    assert metadata.residual_norm[1] == pytest.approx(record(loaded, events, [1]).residual_norm(1))
    assert metadata.event_count == len(events)
    assert -1 <= metadata.split_half_cosine[1] <= 1
    assert len(metadata.source_run_digest) == 64
    assert metadata.discovery_settings == settings
    assert metadata.held_out_lift is None
    assert metadata.licence == "CC0-1.0"
    assert metadata.context_min_match == shared_suffix([one.context for one in events]) >= 2
    assert set(vector.contexts) == {one.context for one in events}


def test_the_recorded_states_lie_beside_the_vectors(run: RunFolder, model: SteeredModel) -> None:
    vectors_of(run, model, VectorOptions(blocks=(0, 2)))

    tensors = load_file(run.path / "activations.safetensors")
    assert set(tensors) == {f"resid.{block}.{place}" for block in (0, 2) for place in PLACES}


def test_vectors_are_the_same_every_time(run: RunFolder, model: SteeredModel) -> None:
    one, other = (load_vector(vectors_of(run, model, VectorOptions()).vectors[0].path) for _ in range(2))

    assert torch.equal(one.directions[1], other.directions[1])
    assert one.contexts == other.contexts


def test_a_group_of_one_event_has_no_reliability(run: RunFolder, model: SteeredModel) -> None:
    with run.read() as ledger:
        pivots = ledger.pivots()
    keep_pivots(run, pivots[:1])

    (made,) = vectors_of(run, model, VectorOptions(min_events=1)).vectors

    assert load_vector(made.path).metadata.split_half_cosine == {}


def keep_pivots(run: RunFolder, pivots: Sequence[PivotRecord]) -> None:
    with run.read() as ledger:
        settings = ledger.settings()
    with Ledger.open(run.ledger, settings) as ledger:
        ledger.write_pivots(pivots)


def test_a_pair_that_is_no_difference_gives_no_file(run: RunFolder, model: SteeredModel) -> None:
    with run.read() as ledger:
        pivots = [dataclasses.replace(pivot, chosen_ids=pivot.rejected_ids) for pivot in ledger.pivots()]
    keep_pivots(run, pivots)

    report = vectors_of(run, model, VectorOptions())

    assert report == VectorReport((), ("pivot-1: the direction came out as zero",))
    assert list(run.vectors.glob("*")) == []


def test_a_run_without_pivots_gives_no_vectors_and_no_files(run: RunFolder, model: SteeredModel) -> None:
    keep_pivots(run, [])

    assert vectors_of(run, model, VectorOptions()) == VectorReport((), ())
    assert not run.vectors.exists()


def test_candidates_that_do_not_help_on_validation_problems_give_no_file(
    run: RunFolder, model: SteeredModel
) -> None:
    options = VectorOptions(methods=("paired_difference",), blocks=(0, 1))

    report = vectors_of(run, model, options, make_problems(6))

    assert report.vectors == ()
    (sentence,) = report.left_out
    assert "no certain lift on 6 validation problems: best +0.000 [+0.000, +0.000]" in sentence
    assert list(run.vectors.glob("*")) == []


def test_vectors_that_are_not_made_again_are_removed_and_strange_files_are_kept(
    run: RunFolder, model: SteeredModel
) -> None:
    (made,) = vectors_of(run, model, VectorOptions()).vectors
    foreign = run.vectors / "foreign.safetensors"
    foreign.write_bytes(b"no vector at all")

    vectors_of(run, model, VectorOptions(methods=("paired_difference",), blocks=(0,)), make_problems(4))

    assert not made.path.exists()
    assert foreign.exists()


# --- the choice on the demonstration model ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> tuple[VectorReport, RunFolder]:
    """Vectors of a small run of the demonstration model, chosen on validation problems."""
    folder = RunFolder(tmp_path_factory.mktemp("demo"))
    sampler = SamplerSettings(max_tokens=96)
    choice = ModelChoice("demo")
    training = load_problems("demo:train", DataOptions(limit=24, shuffle_seed=0))
    problems = load_problems("demo:validation", DataOptions(limit=48, shuffle_seed=0))
    options = VectorOptions(min_events=5, methods=("optimised",), blocks=(0,))
    with oracle_for("math", training) as oracle:
        discover_into(folder, choice, training, oracle, sampler, SearchSettings(), 0, QUIET)
        with folder.read() as ledger, rollouts(choice, sampler) as (model, source):
            prompts = encode_prompts(model, problems, raw=False)
            validation = Validation(model, source, oracle, problems, prompts, sampler, 0, QUIET)
            report = make_vectors(ledger, validation, folder.vectors, options, QUIET)
    return report, folder


def test_only_certain_lifts_are_kept(chosen: tuple[VectorReport, RunFolder]) -> None:
    report, folder = chosen

    assert report.vectors
    assert {path.stem for path in folder.vectors.iterdir()} == {made.name for made in report.vectors}
    for made in report.vectors:
        assert made.lift is not None
        assert 0 < made.lift.low95 <= made.lift.lift <= made.lift.high95
        assert made.lift.lift == pytest.approx(made.lift.steered - made.lift.unsteered)
        assert made.lift.problems == 48


def test_a_file_holds_the_lift_that_it_was_chosen_for(chosen: tuple[VectorReport, RunFolder]) -> None:
    for made in chosen[0].vectors:
        metadata = load_vector(made.path).metadata

        assert metadata.held_out_lift == made.lift
        assert metadata.calibrated_strength == {made.block: pytest.approx(made.strength)}
        assert made.lift is not None
        assert made.lift.split == "validation"
