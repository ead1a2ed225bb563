from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from steering_client import Client
from steering_engine.loading import load_model
from steering_pts.errors import EndpointError, EvaluationError
from steering_pts.evaluation.arms import ArmKind
from steering_pts.evaluation.evaluate import JOURNAL, ServedBy, evaluate
from steering_pts.evaluation.forcing import Decision, known_alternatives
from steering_pts.evaluation.report import EvaluationReport
from steering_pts.evaluation.served import randomised, read_vectors
from steering_pts.evaluation.shuffling import StepCounts
from steering_pts.oracles.base import Verdict
from steering_pts.oracles.registry import make_oracle
from steering_pts.progress import Advance, RunProgress
from steering_pts.prompts import question_prompt
from steering_pts.seeds import derive_seed
from steering_spec import ContextTrigger, ProbeTrigger, SteeringRule
from tests.support.evaluation import CONTEXTS, run, save_vectors, task
from tests.support.models import save_tiny_model
from tests.support.pts import ORACLE, SAMPLER, make_problems
from tests.support.server import LiveServer
from tests.support.vectors import save_random_vector


@pytest.fixture(scope="module")
def vectors(ending_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return save_vectors(tmp_path_factory.mktemp("vectors"), load_model(str(ending_folder)))


@pytest.fixture(scope="module")
def server(ending_folder: Path) -> Iterator[LiveServer]:
    """A server that has no vectors until they are evaluated."""
    with LiveServer(ending_folder) as live:
        yield live


@pytest.fixture(scope="module")
def served(server: LiveServer, ending_folder: Path) -> ServedBy:
    return ServedBy(str(ending_folder), (server.address,))


@pytest.fixture(scope="module")
def report(
    served: ServedBy, vectors: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> EvaluationReport:
    """The vector with contexts, every arm, and its side effects."""
    decisions = [Decision((token,), 200, worse) for (token,) in CONTEXTS for worse in range(201, 258)]
    known = known_alternatives(CONTEXTS, 1, decisions)
    folder = tmp_path_factory.mktemp("evaluation")
    return run(task(served, vectors[:1], folder, known=[known], divergence=True, neutral="ÄÖÜ: äöü, ßéè."))


def test_every_arm_is_measured_on_the_same_problems(report: EvaluationReport) -> None:
    arms = {one.arm.name: one for one in report.measurement.arms}

    assert list(arms) == [
        *("unsteered", "steered", "strength_0", "flipped", "every_step"),
        *("random 1", "random 2", "random 3", "shuffled_steps", "forced_alternative"),
    ]
    main = ("unsteered", "steered", "forced_alternative")
    for name, arm in arms.items():
        assert len(arm.samples) == len(arm.verdicts) == 12
        assert {len(own) for own in arm.samples} == {2 if name in main else 1}


@pytest.mark.parametrize("arm", ["unsteered", "steered"])
def test_what_is_measured_is_what_is_served(report: EvaluationReport, server: LiveServer, arm: str) -> None:
    vector = report.vectors[0]
    steering = None if arm == "unsteered" else SteeringRule(vector.id, trigger=ContextTrigger())
    measured = report.measurement.named(arm)
    assert measured is not None

    with Client(server.address) as client:
        client.load_vector(vector.id, file=vector.data)
        for problem, own in zip(make_problems(12), measured.samples, strict=True):
            for index, sample in enumerate(own):
                seed = derive_seed(0, problem.id, "evaluation") + index
                completion = client.generate(
                    question_prompt(problem, raw=False),
                    sampling=SAMPLER.params(seed),
                    steering=steering,
                    steering_trace=True,
                )
                assert (sample.ids, sample.text) == (completion.ids, completion.text)
                assert sample.steered_steps == {act.step for act in completion.acts}
        client.unload_vector(vector.id)


def test_strength_0_is_the_unsteered_arm_and_the_others_are_not(report: EvaluationReport) -> None:
    arms = {one.arm.name: [own[0].ids for own in one.samples] for one in report.measurement.arms}

    assert report.figures.different_at_strength_0 == (0, 12)
    for name, ids in arms.items():
        assert (ids == arms["unsteered"]) is (name in ("unsteered", "strength_0"))


def test_shuffled_steps_are_as_many_and_other_ones(report: EvaluationReport) -> None:
    plain, steered = report.measurement.unsteered, report.measurement.steered
    shuffled = report.measurement.named("shuffled_steps")
    assert shuffled is not None

    moved = planned = 0
    for before, on_pivots, other in zip(plain.samples, steered.samples, shuffled.samples, strict=True):
        left = len(set(range(len(before[0].ids))) - on_pivots[0].steered_steps)
        # A completion that is steered elsewhere may end before it comes to all of its steps.
        assert len(other[0].steered_steps) <= min(len(on_pivots[0].steered_steps), left)
        assert not other[0].steered_steps & on_pivots[0].steered_steps
        moved += len(other[0].steered_steps)
        planned += len(on_pivots[0].steered_steps)
    assert 0 < moved < 0.95 * planned
    remark = (
        f"shuffled_steps: {moved / 12:.2f} steps of a completion were steered on average, where the triggers "
        f"steered {planned / 12:.2f}"
    )
    assert any(one.startswith(remark) for one in report.remarks)


@pytest.mark.parametrize(("steered", "shuffled", "is_told"), [(0, 0, False), (20, 19, False), (20, 18, True)])
def test_only_steps_that_are_missing_are_told(steered: int, shuffled: int, is_told: bool) -> None:
    counts = StepCounts([], completions=10, steered=steered, shuffled=shuffled)

    assert bool(counts.remarks()) is is_told


def test_forced_alternatives_hold_no_worse_token_at_a_decision(report: EvaluationReport) -> None:
    forced = report.measurement.named("forced_alternative")
    assert forced is not None

    steps = 0
    for own in forced.samples:
        for sample in own:
            pairs = zip(sample.ids, sample.ids[1:], strict=False)
            assert not any((before,) in CONTEXTS and token > 200 for before, token in pairs)
            assert all(sample.ids[step] == 200 for step in sample.steered_steps)
            steps += len(sample.steered_steps)
    assert steps > 0


def test_random_vectors_differ_from_the_vector_in_direction_alone(report: EvaluationReport) -> None:
    own = report.vectors[0]
    made = [randomised(own, number, report.settings.seed) for number in (1, 2, 3)]

    assert len({one.sha256 for one in (own, *made)}) == 4
    for one in made:
        assert not torch.equal(one.vector.directions[1], own.vector.directions[1])
        assert one.blocks == own.blocks
        assert one.vector.contexts == own.vector.contexts
        assert torch.equal(one.vector.probes[0].weight, own.vector.probes[0].weight)
        assert one.vector.metadata.calibrated_strength == own.vector.metadata.calibrated_strength


def test_a_server_has_afterwards_what_it_had_before(
    served: ServedBy, server: LiveServer, report: EvaluationReport, vectors: list[Path], tmp_path: Path
) -> None:
    assert report.measurement.arms  # of which the vectors were there
    with Client(server.address) as client:
        assert client.list_vectors(all_versions=True) == []
        own, other = read_vectors(vectors)[0]
        client.load_vector(own.id, file=own.data)
        client.load_vector("mine", file=other.data)
        before = client.list_vectors(all_versions=True)

        run(task(served, vectors, tmp_path, kinds=frozenset({ArmKind.UNSTEERED, ArmKind.STEERED})))

        assert client.list_vectors(all_versions=True) == before
        for name in (own.id, "mine"):
            client.unload_vector(name)


def test_an_evaluation_that_is_interrupted_unloads_what_it_loaded(
    served: ServedBy, server: LiveServer, vectors: list[Path], tmp_path: Path
) -> None:
    class Interrupting(RunProgress):
        @contextmanager
        def phase(self, *_: object, **__: object) -> Iterator[Advance]:
            assert server.model.vectors.count() == 4  # the vector, and three random ones
            raise KeyboardInterrupt
            yield lambda _: None

    with make_oracle(ORACLE) as oracle, pytest.raises(KeyboardInterrupt):
        evaluate(task(served, vectors[:1], tmp_path), oracle, Interrupting(quiet=True))

    assert server.model.vectors.count() == 0


def test_the_report_tells_everything(report: EvaluationReport) -> None:
    told = report.to_json()

    assert set(told) >= {
        *("schema", "created", "model", "dataset", "problems", "samples_per_problem", "seed", "vectors"),
        *("arms", "lifts", "kl_unsteered_steps", "kl_neutral_text", "by_group", "random"),
        "strength_0_identical",
    }
    assert (told["schema"], told["problems"], told["samples_per_problem"]) == ("steering.evaluation/1", 12, 2)
    assert (
        told["vectors"][0].items()
        >= {"name": "pivot", "block": 1, "method": "random", "strength": 21.0}.items()
    )
    for arm in told["arms"]:
        assert set(arm) >= {
            *("name", "kind", "n", "success", "low", "high", "censored", "tokens_mean", "truncated"),
            *("repetition", "steered_steps_mean"),
        }
        assert arm["low"] <= arm["success"] <= arm["high"]
    assert {lift["arm"] for lift in told["lifts"]} == {
        *("steered", "strength_0", "flipped", "every_step", "shuffled_steps", "forced_alternative")
    }
    assert told["strength_0_identical"] is True
    assert told["random"]["permutation_p"] in (1 / 4, 2 / 4, 3 / 4, 1.0)
    for name in ("kl_unsteered_steps", "kl_neutral_text"):
        assert told[name]["mean"] > 0


def test_what_was_measured_is_not_measured_again(
    served: ServedBy, server: LiveServer, vectors: list[Path], tmp_path: Path
) -> None:
    first = run(task(served, vectors[:1], tmp_path))
    kept = (tmp_path / JOURNAL).read_bytes()
    generated = server.stats().generated_tokens

    again = run(task(served, vectors[:1], tmp_path))
    assert server.stats().generated_tokens == generated
    assert (tmp_path / JOURNAL).read_bytes() == kept
    assert again.figures == first.figures

    more = run(task(served, vectors[:1], tmp_path, samples=3, random_vectors=0))
    grown = (tmp_path / JOURNAL).read_bytes()
    # One more completion of each problem in the two main arms.
    assert grown.startswith(kept)
    assert grown[len(kept) :].count(b"\n") == 24
    for before, after in zip(
        first.measurement.steered.samples, more.measurement.steered.samples, strict=True
    ):
        assert after[:2] == before


def test_what_a_vector_file_recommends_is_its_trigger(
    vectors: list[Path], ending_folder: Path, tmp_path: Path
) -> None:
    loaded = load_model(str(ending_folder))
    recommending = save_random_vector(
        tmp_path,
        loaded,
        "told",
        [1],
        contexts=CONTEXTS,
        recommended_trigger={"kind": "context", "min_match": 3},
    )

    def triggers(*paths: Path, trigger: str | None = None) -> list[object]:
        made = task(ServedBy(None, ("localhost:1",)), paths, tmp_path, trigger=trigger)
        return [*(one.trigger for one in made.vectors), *made.remarks]

    assert triggers(recommending) == [ContextTrigger(min_match_tokens=3)]
    assert triggers(vectors[0]) == [ContextTrigger()]
    assert triggers(vectors[0], trigger="probe") == [ProbeTrigger()]
    assert triggers(vectors[1]) == [
        None,
        "calm has no recorded contexts and recommends no trigger, so it acts at every step",
    ]


def test_a_vector_that_acts_always_has_no_other_steps(
    served: ServedBy, vectors: list[Path], tmp_path: Path
) -> None:
    report = run(task(served, vectors[1:], tmp_path, random_vectors=1))

    names = [one.arm.name for one in report.measurement.arms]
    assert names == ["unsteered", "steered", "strength_0", "flipped", "random 1"]
    assert any(
        one.startswith("every_step and shuffled_steps: the vectors act at every step")
        for one in report.remarks
    )


def test_each_vector_alone_has_a_corrected_p_value(
    served: ServedBy, vectors: list[Path], tmp_path: Path
) -> None:
    kinds = frozenset({ArmKind.UNSTEERED, ArmKind.STEERED})

    report = run(task(served, vectors, tmp_path, each=True, kinds=kinds))

    lifts = {one.arm: one for one in report.figures.lifts}
    assert list(lifts) == ["steered", "steered: pivot", "steered: calm"]
    assert lifts["steered"].holm_p is None
    for name in ("steered: pivot", "steered: calm"):
        assert (lifts[name].holm_p or 0) >= lifts[name].p
    together, alone = report.measurement.steered, report.measurement.named("steered: pivot")
    assert alone is not None
    assert together.samples != alone.samples


def test_an_endpoint_needs_no_model_here(
    served: ServedBy, report: EvaluationReport, vectors: list[Path], tmp_path: Path
) -> None:
    alone = run(
        task(ServedBy(None, served.endpoints), vectors[:1], tmp_path, divergence=True, random_vectors=0)
    )

    assert alone.effects is None
    assert "KL: left out, since the model is not here; name it with --model" in alone.remarks
    assert alone.measurement.steered.samples == report.measurement.steered.samples
    assert alone.measurement.named("forced_alternative") is None


def test_a_completion_that_steering_breaks_is_incorrect(
    served: ServedBy, ending_folder: Path, tmp_path: Path
) -> None:
    loaded = load_model(str(ending_folder))
    path = save_random_vector(tmp_path, loaded, "broken", [1], strength=1e38, contexts=CONTEXTS)
    kinds = frozenset({ArmKind.UNSTEERED, ArmKind.STEERED})

    report = run(task(served, [path], tmp_path, kinds=kinds, strength=1000.0))

    figures = report.figures.arm("steered")
    assert figures is not None
    assert 0 < figures.broken < figures.n
    for own, verdicts in zip(
        report.measurement.steered.samples, report.measurement.steered.verdicts, strict=True
    ):
        for sample, verdict in zip(own, verdicts, strict=True):
            assert not sample.broken or verdict is Verdict.INCORRECT


def test_servers_share_the_work_and_the_result_is_that_of_one(
    served: ServedBy, server: LiveServer, ending_folder: Path, vectors: list[Path], tmp_path: Path
) -> None:
    alone = run(task(served, vectors[:1], tmp_path / "alone"))
    before = server.stats().generated_tokens
    with LiveServer(ending_folder) as other:
        both = ServedBy(str(ending_folder), (server.address, other.address))
        together = run(task(both, vectors[:1], tmp_path / "together"))
        shares = (server.stats().generated_tokens - before, other.stats().generated_tokens)

    assert together.figures == alone.figures
    assert together.measurement.steered == alone.measurement.steered
    assert min(shares) > sum(shares) / 4


def test_servers_of_different_models_do_not_share_the_work(
    served: ServedBy, vectors: list[Path], tmp_path: Path
) -> None:
    other = save_tiny_model(tmp_path / "other", "llama")
    with LiveServer(other) as strange:
        both = ServedBy(None, (*served.endpoints, strange.address))
        with pytest.raises(
            EndpointError, match=f"{strange.address} does not serve what {served.endpoints[0]} serves"
        ):
            run(task(both, vectors[:1], tmp_path / "out"))


def test_a_server_that_is_full_is_asked_again(
    ending_folder: Path, vectors: list[Path], tmp_path: Path
) -> None:
    kinds = frozenset({ArmKind.UNSTEERED, ArmKind.STEERED})
    with LiveServer(ending_folder, max_queued=12) as small:
        report = run(task(ServedBy(str(ending_folder), (small.address,)), vectors[:1], tmp_path, kinds=kinds))
        wanted = len(report.measurement.arms) * 12 * 2

    assert (tmp_path / JOURNAL).read_bytes().count(b"\n") == wanted


def test_a_server_that_goes_away_is_given_up_and_nothing_is_lost(
    ending_folder: Path, vectors: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steering_pts.evaluation.sampling._PATIENCE_SECONDS", 0.5)
    with LiveServer(ending_folder) as server:
        run(task(ServedBy(str(ending_folder), (server.address,)), vectors[:1], tmp_path, random_vectors=0))
        kept = (tmp_path / JOURNAL).read_bytes()
        server.close_engine()
        with pytest.raises(
            EndpointError, match=r"no completions come any more \(.*\); the same command goes on"
        ):
            run(task(ServedBy(str(ending_folder), (server.address,)), vectors[:1], tmp_path))

    assert (tmp_path / JOURNAL).read_bytes() == kept


def test_a_server_that_is_not_there_is_told(
    vectors: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steering_pts.evaluation.sampling._CONNECT_SECONDS", 0.2)

    with pytest.raises(EndpointError, match=r"no server answered at localhost:1 within"):
        run(task(ServedBy(None, ("localhost:1",)), vectors[:1], tmp_path))
    with pytest.raises(EndpointError, match="'nowhere' is no address of a server; expected HOST:PORT"):
        run(task(ServedBy(None, ("nowhere",)), vectors[:1], tmp_path))


def test_settings_that_cannot_be_are_told_together() -> None:
    with pytest.raises(EvaluationError) as caught:
        task(ServedBy(None, ("a:1",)), [], Path(), samples=0, control_samples=2, random_vectors=-1)

    assert str(caught.value) == (
        "samples is 0; expected 1 to 128; control samples are 2; expected 1 to 0, the samples of the main arms, "
        "which they are compared with; random vectors are -1; expected 0 or more"
    )
