"""The steering plan: what rules do to the packed rows of a batch, and to the tokens of a completion."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from steering_engine.blocks import SteeringHooks, find_blocks
from steering_engine.loading import LoadedModel, load_model
from steering_engine.steering.batch import BatchDecisions
from steering_engine.steering.compile import compile_plan
from steering_engine.steering.forward import upload
from steering_engine.steering.ops import Effect
from steering_engine.steering.plan import SteeringPlan
from steering_engine.steering.state import SteeringState
from steering_engine.steering.table import DirectionTable
from steering_engine.steering.triggers import Reading
from steering_engine.vectors.file import encode_vector
from steering_engine.vectors.registry import VectorRegistry
from steering_spec import (
    Clamp,
    Clause,
    ConflictPolicy,
    ContextTrigger,
    Phase,
    Positions,
    ProbeTrigger,
    Selector,
    SimilarityTrigger,
    SteeringAct,
    SteeringRule,
    SteeringSpec,
    Trigger,
    TriggerKind,
)
from tests.support.models import save_tiny_model
from tests.support.steering import probability
from tests.support.vectors import random_vector, save_random_vector

PROMPT = (10, 11, 12, 13, 14)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(str(save_tiny_model(tmp_path_factory.mktemp("plan") / "model")), "cpu", "float32")


@pytest.fixture(scope="module")
def table(loaded: LoadedModel) -> DirectionTable:
    return DirectionTable(loaded.block_count, loaded.hidden_size, loaded.device)


@pytest.fixture(scope="module")
def vectors(
    loaded: LoadedModel, table: DirectionTable, tmp_path_factory: pytest.TempPathFactory
) -> VectorRegistry:
    folder = tmp_path_factory.mktemp("vectors")
    registry = VectorRegistry(loaded, table)
    registry.load("one", save_random_vector(folder, loaded, "one", [0, 1, 2], seed=1))
    registry.load("two", save_random_vector(folder, loaded, "two", [1], seed=2))
    path = save_random_vector(
        folder, loaded, "pivot", [2], seed=3, contexts=[(40, 41), (50, 51, 52)], min_match=2
    )
    registry.load("pivot", path)
    return registry


def rules(*given: SteeringRule) -> SteeringSpec:
    return SteeringSpec(given)


class TestCompiling:
    def test_defaults_are_filled_in_and_vectors_pinned(self, vectors: VectorRegistry) -> None:
        plan = compile_plan(rules(SteeringRule("pivot", trigger=ContextTrigger())), vectors, PROMPT)
        digest = vectors.infos()[1].sha256
        assert plan.applied == rules(
            SteeringRule(f"vectors/pivot@{digest}", layers=(2,), trigger=ContextTrigger(min_match_tokens=2))
        )

    def test_strength_times_calibrated_strength_is_the_scale(self, vectors: VectorRegistry) -> None:
        plan = compile_plan(rules(SteeringRule("one", -0.5, layers=(2, 0))), vectors, PROMPT)
        assert plan.rules[0].layers == (0, 2)
        assert plan.rules[0].effects == (Effect(-0.5 * 4.0), Effect(-0.5 * 6.0))

    def test_a_rule_of_strength_zero_is_told_but_not_compiled(self, vectors: VectorRegistry) -> None:
        plan = compile_plan(rules(SteeringRule("one", 0.0), SteeringRule("two")), vectors, PROMPT)
        assert [rule.index for rule in plan.rules] == [1]
        assert len(plan.applied.rules) == 2

    def test_the_first_row_is_the_earliest_of_all_rules(self, vectors: VectorRegistry) -> None:
        spec = rules(
            SteeringRule("one", selector=Selector.step_window(3)),
            SteeringRule("two", selector=Selector.prompt_positions(2)),
        )
        assert compile_plan(spec, vectors, PROMPT).first_row == 2

    @pytest.mark.parametrize(
        "other",
        [
            SteeringRule("one", 1.5),
            SteeringRule("two"),
            SteeringRule("one", layers=(0,)),
            SteeringRule("one", selector=Selector.step_window(1)),
            SteeringRule("one", trigger=ContextTrigger(1)),
        ],
    )
    def test_whatever_steers_otherwise_has_another_salt(
        self, other: SteeringRule, vectors: VectorRegistry
    ) -> None:
        salt = compile_plan(rules(SteeringRule("one")), vectors, PROMPT).cache_salt
        assert compile_plan(rules(other), vectors, PROMPT).cache_salt != salt

    def test_another_prompt_length_has_another_salt(self, vectors: VectorRegistry) -> None:
        spec = rules(SteeringRule("one"))
        assert (
            compile_plan(spec, vectors, PROMPT).cache_salt
            != compile_plan(spec, vectors, (*PROMPT, 15)).cache_salt
        )

    def test_two_ways_to_say_the_same_have_one_salt(self, vectors: VectorRegistry) -> None:
        plain = compile_plan(rules(SteeringRule("one")), vectors, PROMPT)
        spelled = compile_plan(rules(SteeringRule("vectors/one", 1.0, layers=(2, 1, 0))), vectors, PROMPT)
        assert plain.cache_salt == spelled.cache_salt


def told(plan: SteeringPlan, completion: tuple[int, ...] = ()) -> list[SteeringAct]:
    state = SteeringState(plan, PROMPT)
    for token_id in completion:
        state.accept(token_id)
    rows = range(len(PROMPT) + len(completion))
    return [act.describe(row, len(PROMPT)) for row in rows for act in state.acts_on(row)]


class TestDeciding:
    def test_prompt_rows_come_by_position_and_steps_by_step(self, vectors: VectorRegistry) -> None:
        selector = Selector(
            (Clause(Phase.PROMPT, Positions((1,))), Clause(Phase.GENERATION, Positions((0, 2))))
        )
        plan = compile_plan(rules(SteeringRule("two", selector=selector)), vectors, PROMPT)
        assert told(plan, (20, 21)) == [
            SteeringAct(0, (1,), prompt_position=1),
            SteeringAct(0, (1,), step=0),
            SteeringAct(0, (1,), step=2),
        ]

    def test_a_row_named_in_both_phases_is_steered_once(self, vectors: VectorRegistry) -> None:
        selector = Selector(
            (Clause(Phase.PROMPT, Positions((-1,))), Clause(Phase.GENERATION, Positions((0,))))
        )
        plan = compile_plan(rules(SteeringRule("two", selector=selector)), vectors, PROMPT)
        assert told(plan) == [SteeringAct(0, (1,), prompt_position=len(PROMPT) - 1)]

    def test_a_firing_tells_its_match_and_a_held_step_none(self, vectors: VectorRegistry) -> None:
        rule = SteeringRule("pivot", trigger=ContextTrigger(hold_steps=2))
        plan = compile_plan(rules(rule), vectors, PROMPT)
        assert told(plan, (50, 51, 52, 20)) == [
            SteeringAct(0, (2,), step=3, trigger=TriggerKind.CONTEXT, score=3),
            SteeringAct(0, (2,), step=4, trigger=TriggerKind.CONTEXT),
        ]

    def test_a_trigger_has_no_say_in_prompt_rows(self, vectors: VectorRegistry) -> None:
        rule = SteeringRule("pivot", selector=Selector.prompt_positions(0), trigger=ContextTrigger())
        plan = compile_plan(rules(rule), vectors, PROMPT)
        assert told(plan, (40, 41)) == [SteeringAct(0, (2,), prompt_position=0)]

    def test_rows_asked_for_again_are_steered_alike(self, vectors: VectorRegistry) -> None:
        rule = SteeringRule("pivot", trigger=ContextTrigger(max_firings=1))
        state = SteeringState(compile_plan(rules(rule), vectors, PROMPT), PROMPT)
        for token_id in (40, 41, 40, 41):
            state.accept(token_id)
        first = [state.acts_on(row) for row in range(9)]
        assert [row for row, acts in enumerate(first) if acts] == [6]
        assert [state.acts_on(row) for row in range(9)] == first


@pytest.fixture
def hooks(loaded: LoadedModel, table: DirectionTable) -> Iterator[SteeringHooks]:
    hooks = SteeringHooks(find_blocks(loaded.model), table)
    yield hooks
    hooks.remove()


def logits(loaded: LoadedModel, ids: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = loaded.model(torch.tensor([ids]), use_cache=False).logits[0]
    return found


class TestHooks:
    COMPLETION = (20, 21, 22, 23)

    @pytest.mark.parametrize("step", range(4))
    def test_a_rule_at_step_j_changes_token_j_and_nothing_before_it(
        self, step: int, loaded: LoadedModel, vectors: VectorRegistry, hooks: SteeringHooks
    ) -> None:
        ids = (*PROMPT, *self.COMPLETION)
        plain = logits(loaded, ids)
        state = SteeringState(
            compile_plan(rules(SteeringRule("one", selector=Selector.steps(step))), vectors, PROMPT),
            PROMPT,
        )
        for token_id in self.COMPLETION:
            state.accept(token_id)
        batch = BatchDecisions()
        for row in range(len(ids)):
            batch.add_acts(row, state.acts_on(row))
        hooks.plan = upload(batch.plan(), CPU)
        steered = logits(loaded, ids)
        # Row P - 1 + j predicts token j.
        predicts = len(PROMPT) - 1 + step
        assert torch.equal(steered[:predicts], plain[:predicts])
        assert not torch.allclose(steered[predicts], plain[predicts])

    def test_without_a_plan_a_forward_is_untouched(self, loaded: LoadedModel, hooks: SteeringHooks) -> None:
        with_hooks = logits(loaded, PROMPT)
        hooks.remove()
        assert torch.equal(logits(loaded, PROMPT), with_hooks)


@pytest.fixture(scope="module")
def registry(loaded: LoadedModel, table: DirectionTable) -> VectorRegistry:
    registry = VectorRegistry(loaded, table)
    torch.manual_seed(0)
    weights = torch.randn(4, loaded.hidden_size)
    vector = random_vector(
        loaded,
        "read",
        [1, 2],
        probes={block: (weights[block], 0.25) for block in range(3)},
        probe_threshold={0: 0.6, 1: 0.7},
        probe_auc={0: 0.9, 1: 0.8, 2: 0.99},
        centroids={0: weights[:2], 1: weights[2:]},
        centroid_min_cosine={0: 0.5},
    )
    registry.load("read", encode_vector(vector))
    return registry


class TestChoosingWhatIsRead:
    """A trigger that names no block reads the best probe, or the last centroids, that it may."""

    @pytest.mark.parametrize(
        ("trigger", "layers", "expected"),
        [
            (ProbeTrigger(), (1, 2), ProbeTrigger(0, 0.6)),
            (ProbeTrigger(threshold=0.3), (2,), ProbeTrigger(2, 0.3)),
            (ProbeTrigger(), (2,), ProbeTrigger(0, 0.6)),  # block 2 has the best probe, but no threshold
            (ProbeTrigger(1), (1, 2), ProbeTrigger(1, 0.7)),
            (SimilarityTrigger(), (1,), SimilarityTrigger(0, 0.5)),
            (SimilarityTrigger(min_cosine=0.1), (1,), SimilarityTrigger(1, 0.1)),
        ],
    )
    def test_the_applied_steering_says_what_is_read(
        self, trigger: Trigger, layers: tuple[int, ...], expected: Trigger, registry: VectorRegistry
    ) -> None:
        plan = compile_plan(rules(SteeringRule("read", layers=layers, trigger=trigger)), registry, PROMPT)
        assert plan.applied.rules[0].trigger == expected

    def test_a_threshold_is_compared_as_a_logit(self, registry: VectorRegistry) -> None:
        plan = compile_plan(rules(SteeringRule("read", trigger=ProbeTrigger(1, 0.7))), registry, PROMPT)
        trigger = plan.rules[0].trigger
        assert trigger is not None
        assert isinstance(trigger.condition, Reading)
        assert probability(trigger.condition.threshold) == pytest.approx(0.7)
        assert trigger.condition.bias == 0.25

    def test_clamps_act_last_unless_the_first_takes_the_row(self, registry: VectorRegistry) -> None:
        given = (SteeringRule("read", operation=Clamp(max=1.0)), SteeringRule("read"))
        sequential = compile_plan(SteeringSpec(given), registry, PROMPT)
        assert [rule.index for rule in sequential.rules] == [1, 0]
        first = compile_plan(SteeringSpec(given, ConflictPolicy.FIRST), registry, PROMPT)
        assert [rule.index for rule in first.rules] == [0, 1]
        assert (sequential.exclusive, first.exclusive) == (False, True)
