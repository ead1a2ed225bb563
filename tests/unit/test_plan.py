"""The steering plan: what rules do to the packed rows of a batch, and to the tokens of a completion."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from steering_engine.blocks import SteeringHooks, find_blocks
from steering_engine.loading import LoadedModel, load_model
from steering_engine.steering import ops
from steering_engine.steering.compile import compile_plan
from steering_engine.steering.plan import BatchPlan, RowAct, SteeringPlan, SteeringState
from steering_engine.steering.table import DirectionTable
from steering_engine.vectors.registry import VectorRegistry
from steering_spec import (
    Clause,
    ContextTrigger,
    Phase,
    Positions,
    Selector,
    SteeringAct,
    SteeringRule,
    SteeringSpec,
)
from tests.support.models import save_tiny_model
from tests.support.vectors import save_random_vector

PROMPT = (10, 11, 12, 13, 14)


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
        plan = compile_plan(rules(SteeringRule("pivot", trigger=ContextTrigger())), vectors, len(PROMPT))
        digest = vectors.infos()[1].sha256
        assert plan.applied == rules(
            SteeringRule(f"vectors/pivot@{digest}", layers=(2,), trigger=ContextTrigger(min_match_tokens=2))
        )

    def test_strength_times_calibrated_strength_is_the_scale(self, vectors: VectorRegistry) -> None:
        plan = compile_plan(rules(SteeringRule("one", -0.5, layers=(2, 0))), vectors, len(PROMPT))
        assert plan.rules[0].layers == (0, 2)
        assert plan.rules[0].scales == (-0.5 * 4.0, -0.5 * 6.0)

    def test_a_rule_of_strength_zero_is_told_but_not_compiled(self, vectors: VectorRegistry) -> None:
        plan = compile_plan(rules(SteeringRule("one", 0.0), SteeringRule("two")), vectors, len(PROMPT))
        assert [rule.index for rule in plan.rules] == [1]
        assert len(plan.applied.rules) == 2

    def test_the_first_row_is_the_earliest_of_all_rules(self, vectors: VectorRegistry) -> None:
        spec = rules(
            SteeringRule("one", selector=Selector.step_window(3)),
            SteeringRule("two", selector=Selector.prompt_positions(2)),
        )
        assert compile_plan(spec, vectors, len(PROMPT)).first_row == 2

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
        salt = compile_plan(rules(SteeringRule("one")), vectors, len(PROMPT)).cache_salt
        assert compile_plan(rules(other), vectors, len(PROMPT)).cache_salt != salt

    def test_another_prompt_length_has_another_salt(self, vectors: VectorRegistry) -> None:
        spec = rules(SteeringRule("one"))
        assert compile_plan(spec, vectors, 5).cache_salt != compile_plan(spec, vectors, 6).cache_salt

    def test_two_ways_to_say_the_same_have_one_salt(self, vectors: VectorRegistry) -> None:
        plain = compile_plan(rules(SteeringRule("one")), vectors, 5)
        spelled = compile_plan(rules(SteeringRule("vectors/one", 1.0, layers=(2, 1, 0))), vectors, 5)
        assert plain.cache_salt == spelled.cache_salt


def told(plan: SteeringPlan, completion: tuple[int, ...] = ()) -> list[SteeringAct]:
    state = SteeringState(plan, PROMPT)
    for token_id in completion:
        state.accept(token_id)
    return [act.describe(len(PROMPT)) for act in state.acts(0, len(PROMPT) + len(completion))]


class TestDeciding:
    def test_prompt_rows_come_by_position_and_steps_by_step(self, vectors: VectorRegistry) -> None:
        selector = Selector(
            (Clause(Phase.PROMPT, Positions((1,))), Clause(Phase.GENERATION, Positions((0, 2))))
        )
        plan = compile_plan(rules(SteeringRule("two", selector=selector)), vectors, len(PROMPT))
        assert told(plan, (20, 21)) == [
            SteeringAct(0, (1,), prompt_position=1),
            SteeringAct(0, (1,), step=0),
            SteeringAct(0, (1,), step=2),
        ]

    def test_a_row_named_in_both_phases_is_steered_once(self, vectors: VectorRegistry) -> None:
        selector = Selector(
            (Clause(Phase.PROMPT, Positions((-1,))), Clause(Phase.GENERATION, Positions((0,))))
        )
        plan = compile_plan(rules(SteeringRule("two", selector=selector)), vectors, len(PROMPT))
        assert told(plan) == [SteeringAct(0, (1,), prompt_position=len(PROMPT) - 1)]

    def test_a_firing_tells_its_match_and_a_held_step_none(self, vectors: VectorRegistry) -> None:
        rule = SteeringRule("pivot", trigger=ContextTrigger(hold_steps=2))
        plan = compile_plan(rules(rule), vectors, len(PROMPT))
        assert told(plan, (50, 51, 52, 20)) == [
            SteeringAct(0, (2,), step=3, match_tokens=3),
            SteeringAct(0, (2,), step=4),
        ]

    def test_a_trigger_has_no_say_in_prompt_rows(self, vectors: VectorRegistry) -> None:
        rule = SteeringRule("pivot", selector=Selector.prompt_positions(0), trigger=ContextTrigger())
        plan = compile_plan(rules(rule), vectors, len(PROMPT))
        assert told(plan, (40, 41)) == [SteeringAct(0, (2,), prompt_position=0)]

    def test_rows_asked_for_again_are_steered_alike(self, vectors: VectorRegistry) -> None:
        rule = SteeringRule("pivot", trigger=ContextTrigger(max_firings=1))
        state = SteeringState(compile_plan(rules(rule), vectors, len(PROMPT)), PROMPT)
        for token_id in (40, 41, 40, 41):
            state.accept(token_id)
        first = list(state.acts(0, 9))
        assert [act.row for act in first] == [6]
        assert list(state.acts(0, 9)) == first
        assert list(state.acts(6, 7)) == first


class TestApplying:
    def act(self, plan: SteeringPlan, rule: int, row: int = 0) -> RowAct:
        return RowAct(row, plan.rules[rule], None, from_prompt_clause=False)

    def test_untouched_rows_keep_their_exact_bits(
        self, vectors: VectorRegistry, table: DirectionTable
    ) -> None:
        torch.manual_seed(0)
        hidden = torch.randn(6, 32)
        plan = compile_plan(rules(SteeringRule("one")), vectors, 5)
        batch = BatchPlan()
        batch.add(2, self.act(plan, 0))
        steered = batch.apply(1, hidden, table)
        untouched = [0, 1, 3, 4, 5]
        assert torch.equal(steered[untouched], hidden[untouched])
        assert not torch.equal(steered[2], hidden[2])

    def test_the_input_is_not_written_to(self, vectors: VectorRegistry, table: DirectionTable) -> None:
        hidden = torch.zeros(3, 32)
        batch = BatchPlan()
        batch.add(1, self.act(compile_plan(rules(SteeringRule("one")), vectors, 5), 0))
        batch.apply(0, hidden, table)
        assert torch.equal(hidden, torch.zeros(3, 32))

    def test_a_block_that_no_rule_names_is_returned_as_it_is(
        self, vectors: VectorRegistry, table: DirectionTable
    ) -> None:
        hidden = torch.zeros(3, 32)
        batch = BatchPlan()
        batch.add(1, self.act(compile_plan(rules(SteeringRule("two")), vectors, 5), 0))
        assert batch.apply(0, hidden, table) is hidden
        assert batch.apply(1, hidden, table) is not hidden

    def test_several_rules_on_one_row_act_one_after_the_other(
        self, vectors: VectorRegistry, table: DirectionTable
    ) -> None:
        torch.manual_seed(0)
        hidden = torch.randn(3, 32, dtype=torch.bfloat16)
        plan = compile_plan(rules(SteeringRule("one", 0.3), SteeringRule("two", -0.7)), vectors, 5)
        batch = BatchPlan()
        for rule in (1, 0):  # the order in which acts are added does not matter, that of the rules does
            batch.add(1, self.act(plan, rule))
        expected = hidden[1:2]
        for name, rule in (("one", plan.rules[0]), ("two", plan.rules[1])):
            direction = vectors._vectors[name].vector.directions[1][None]
            expected = ops.add(expected, direction, torch.tensor([rule.scales[rule.layers.index(1)]]))
        assert torch.equal(batch.apply(1, hidden, table)[1:2], expected)

    def test_a_row_is_steered_alike_whatever_else_is_in_the_batch(
        self, vectors: VectorRegistry, table: DirectionTable
    ) -> None:
        torch.manual_seed(0)
        hidden = torch.randn(8, 32)
        mine = compile_plan(rules(SteeringRule("one", 0.3), SteeringRule("two", -0.7)), vectors, 5)
        theirs = compile_plan(rules(SteeringRule("two", 2.0)), vectors, 5)
        alone, together = BatchPlan(), BatchPlan()
        for row in (0, 1, 6, 7):
            together.add(row, self.act(theirs, 0))
        for rule in (0, 1):
            alone.add(3, self.act(mine, rule))
            together.add(3, self.act(mine, rule))
        assert torch.equal(alone.apply(1, hidden, table)[3], together.apply(1, hidden, table)[3])

    def test_an_empty_plan_is_false(self) -> None:
        assert not BatchPlan()


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
            compile_plan(rules(SteeringRule("one", selector=Selector.steps(step))), vectors, len(PROMPT)),
            PROMPT,
        )
        for token_id in self.COMPLETION:
            state.accept(token_id)
        hooks.plan = BatchPlan()
        for act in state.acts(0, len(ids)):
            hooks.plan.add(act.row, act)
        steered = logits(loaded, ids)
        # Row P - 1 + j predicts token j.
        predicts = len(PROMPT) - 1 + step
        assert torch.equal(steered[:predicts], plain[:predicts])
        assert not torch.allclose(steered[predicts], plain[predicts])

    def test_without_a_plan_a_forward_is_untouched(self, loaded: LoadedModel, hooks: SteeringHooks) -> None:
        with_hooks = logits(loaded, PROMPT)
        hooks.remove()
        assert torch.equal(logits(loaded, PROMPT), with_hooks)
