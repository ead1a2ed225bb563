"""What steering does in one forward: rows, lanes, and gates that the forward opens for itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steering_engine.steering import ops
from steering_engine.steering.batch import BatchDecisions
from steering_engine.steering.forward import upload
from steering_engine.steering.ops import Effect
from steering_engine.steering.plan import CompiledRule
from steering_engine.steering.state import RowAct, SteeringState
from steering_engine.steering.table import DirectionTable
from tests.support.steering import plan_of, probability, probe, rule, similarity

CPU = torch.device("cpu")
HIDDEN = 32
PROMPT = (10, 11, 12)
LAST = len(PROMPT) - 1


@pytest.fixture(scope="module")
def table() -> DirectionTable:
    """Slots 1 to 6 of three blocks hold random unit rows."""
    table = DirectionTable(3, HIDDEN, CPU)
    torch.manual_seed(1)
    for block in range(3):
        for slot in range(1, 7):
            assert table.add(block, torch.nn.functional.normalize(torch.randn(HIDDEN), dim=0)) == slot
    return table


def rows_of(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(count, HIDDEN).to(dtype)


def acts(*rules: CompiledRule) -> list[RowAct]:
    return [RowAct(one, one.layers) for one in rules]


class TestActs:
    def test_untouched_rows_keep_their_exact_bits(self, table: DirectionTable) -> None:
        hidden = rows_of(6)
        batch = BatchDecisions()
        batch.add_acts(2, acts(rule(0, PROMPT)))
        steered = upload(batch.plan(), CPU).apply(1, hidden, table)
        untouched = [0, 1, 3, 4, 5]
        assert torch.equal(steered[untouched], hidden[untouched])
        assert torch.equal(steered[2], hidden[2] + table.rows(1)[1])

    def test_the_input_is_not_written_to(self, table: DirectionTable) -> None:
        hidden = torch.zeros(3, HIDDEN)
        batch = BatchDecisions()
        batch.add_acts(1, acts(rule(0, PROMPT)))
        upload(batch.plan(), CPU).apply(1, hidden, table)
        assert torch.equal(hidden, torch.zeros(3, HIDDEN))

    def test_when_every_row_is_steered_the_input_is_not_written_to_either(
        self, table: DirectionTable
    ) -> None:
        hidden = rows_of(3)
        given_ = hidden.clone()
        batch = BatchDecisions()
        for row in range(3):
            batch.add_acts(row, acts(rule(row, PROMPT), rule(5, PROMPT)))
        steered = upload(batch.plan(), CPU).apply(1, hidden, table)
        assert torch.equal(hidden, given_)
        assert torch.equal(steered, given_ + table.rows(1)[1:4] + table.rows(1)[6])

    def test_a_block_that_no_rule_names_is_returned_as_it_is(self, table: DirectionTable) -> None:
        hidden = torch.zeros(3, HIDDEN)
        batch = BatchDecisions()
        batch.add_acts(1, acts(rule(0, PROMPT)))
        assert upload(batch.plan(), CPU).apply(0, hidden, table) is hidden

    def test_several_rules_on_one_row_act_one_after_the_other(self, table: DirectionTable) -> None:
        hidden = rows_of(3, torch.bfloat16)
        first, second = (
            rule(0, PROMPT, effect=Effect(0.3)),
            rule(1, PROMPT, effect=Effect(0.0, 1.0, 0.5, 0.5)),
        )
        batch = BatchDecisions()
        batch.add_acts(1, acts(first, second))
        expected = hidden[1:2]
        for slot, one in ((1, first), (2, second)):
            expected = ops.steer(expected, table.rows(1)[slot][None], torch.tensor([one.effects[0]]))
        assert torch.equal(upload(batch.plan(), CPU).apply(1, hidden, table)[1:2], expected)

    def test_only_the_blocks_of_the_act_are_steered(self, table: DirectionTable) -> None:
        batch = BatchDecisions()
        both = rule(0, PROMPT, layers=(0, 1))
        batch.add_acts(0, [RowAct(both, (1,))])
        hidden = rows_of(1)
        forward = upload(batch.plan(), CPU)
        assert forward.apply(0, hidden, table) is hidden
        assert not torch.equal(forward.apply(1, hidden, table), hidden)

    @given(st.data())
    @settings(max_examples=100)
    def test_a_row_is_steered_alike_whatever_else_is_in_the_batch(
        self, table: DirectionTable, data: st.DataObject
    ) -> None:
        effects = st.sampled_from(
            [Effect(0.7), Effect(-2.0, norm_preserved=1.0), Effect(0.0, 1.0), Effect(0.0, 0.5, -0.1, 0.2)]
        )
        rules_of_row = st.lists(st.tuples(st.integers(0, 5), effects), max_size=4)
        drawn = data.draw(st.lists(rules_of_row, min_size=1, max_size=8))
        hidden = rows_of(len(drawn))
        together = BatchDecisions()
        alone = []
        for row, own in enumerate(drawn):
            made = acts(*(rule(slot, PROMPT, effect=effect) for slot, effect in own))
            together.add_acts(row, made)
            single = BatchDecisions()
            single.add_acts(0, made)
            alone.append(upload(single.plan(), CPU).apply(1, hidden[row : row + 1], table))
        assert torch.equal(upload(together.plan(), CPU).apply(1, hidden, table), torch.cat(alone))

    def test_a_plan_serves_any_number_of_forwards(self, table: DirectionTable) -> None:
        batch = BatchDecisions()
        batch.add_acts(1, acts(rule(0, PROMPT), rule(1, PROMPT)))
        forward = upload(batch.plan(), CPU)
        for count in (2, 3, 2):
            hidden = rows_of(count)
            expected = hidden[1] + table.rows(1)[1] + table.rows(1)[2]
            assert torch.equal(forward.apply(1, hidden, table)[1], expected)


def asking(*rules: CompiledRule, exclusive: bool = False) -> SteeringState:
    return SteeringState(plan_of(PROMPT, *rules, exclusive=exclusive), PROMPT)


def run(states: dict[int, SteeringState], hidden: torch.Tensor, table: DirectionTable) -> list[torch.Tensor]:
    """One forward over three blocks whose outputs are all `hidden`; states by batch row, answered at its end."""
    batch = BatchDecisions()
    for row, state in states.items():
        candidates = state.open_candidates(LAST)
        assert candidates is not None
        batch.add_candidates(row, candidates, exclusive=state.plan.exclusive, owner=row)
    forward = upload(batch.plan(), CPU)
    outputs = [forward.apply(block, hidden, table) for block in range(3)]
    answers = forward.answers()
    for row, state in states.items():
        state.answer(answers[row])
    return outputs


class TestQuestions:
    def test_a_probe_opens_the_gate_of_its_own_row_in_the_same_forward(self, table: DirectionTable) -> None:
        hidden = rows_of(2)
        hidden[0], hidden[1] = table.rows(0)[3], -table.rows(0)[3]
        states = {row: asking(rule(0, PROMPT, trigger=probe(3, threshold=0.5))) for row in (0, 1)}
        outputs = run(states, hidden, table)
        assert torch.equal(outputs[1][0], hidden[0] + table.rows(1)[1])
        assert torch.equal(outputs[1][1], hidden[1])
        assert [len(states[row].acts_on(LAST)) for row in (0, 1)] == [1, 0]

    def test_the_score_is_the_probability_of_what_was_read(self, table: DirectionTable) -> None:
        hidden = rows_of(1)
        state = asking(rule(0, PROMPT, trigger=probe(3, threshold=-100.0)))
        run({0: state}, hidden, table)
        expected = probability(float(hidden[0] @ table.rows(0)[3]))
        assert state.acts_on(LAST)[0].score == pytest.approx(expected, abs=1e-6)

    def test_a_similarity_is_the_cosine_to_the_nearest_centroid(self, table: DirectionTable) -> None:
        hidden = 7 * rows_of(1)
        state = asking(rule(0, PROMPT, trigger=similarity(2, 4, 5, min_cosine=-1.0)))
        run({0: state}, hidden, table)
        cosines = torch.nn.functional.cosine_similarity(hidden, table.rows(0)[[2, 4, 5]])
        assert state.acts_on(LAST)[0].score == pytest.approx(float(cosines.max()), abs=1e-6)

    @pytest.mark.parametrize("above", [True, False])
    def test_the_threshold_itself_fires(self, above: bool, table: DirectionTable) -> None:
        hidden = table.rows(0)[3][None].clone()
        value = float(ops.coordinate(hidden, hidden)[0])
        threshold = value if above else float(torch.nextafter(torch.tensor(value), torch.tensor(9.0)))
        state = asking(rule(0, PROMPT, trigger=probe(3, threshold=threshold)))
        run({0: state}, hidden, table)
        assert bool(state.acts_on(LAST)) == above

    def test_what_is_no_number_never_fires(self, table: DirectionTable) -> None:
        hidden = torch.full((1, HIDDEN), torch.nan)
        state = asking(rule(0, PROMPT, trigger=probe(3, threshold=-1e30)))
        run({0: state}, hidden, table)
        assert state.acts_on(LAST) == ()

    def test_the_block_is_read_before_any_rule_acts_on_it(self, table: DirectionTable) -> None:
        # The first rule would move the row far along what the second one's probe looks for.
        mover = rule(2, PROMPT, layers=(0,), effect=Effect(100.0))
        reader = rule(1, PROMPT, layers=(0,), trigger=probe(3, threshold=50.0))
        state = asking(mover, reader)
        run({0: state}, rows_of(1), table)
        assert [act.rule.index for act in state.acts_on(LAST)] == [2]

    @pytest.mark.parametrize("fires", [True, False])
    def test_the_first_rule_that_acts_takes_the_row_inside_the_forward(
        self, fires: bool, table: DirectionTable
    ) -> None:
        hidden = rows_of(1)
        threshold = -100.0 if fires else 100.0
        state = asking(
            rule(0, PROMPT, trigger=probe(3, threshold=threshold)),
            rule(1, PROMPT, layers=(1, 2)),
            exclusive=True,
        )
        outputs = run({0: state}, hidden, table)
        assert torch.equal(outputs[1][0], hidden[0] + table.rows(1)[1 if fires else 2])
        assert torch.equal(outputs[2][0], hidden[0] + table.rows(2)[2])

    @given(st.data())
    @settings(max_examples=150)
    def test_what_the_forward_does_is_what_the_state_says_afterwards(
        self, table: DirectionTable, data: st.DataObject
    ) -> None:
        triggers = st.one_of(
            st.none(),
            st.builds(
                lambda slot, block, threshold: probe(slot, block=block, threshold=threshold),
                st.integers(1, 6),
                st.integers(0, 1),
                st.floats(-1, 1),
            ),
            st.builds(
                lambda slots, least: similarity(*slots, block=1, min_cosine=least),
                st.lists(st.integers(1, 6), min_size=1, max_size=3),
                st.floats(-0.3, 0.3),
            ),
        )
        count = data.draw(st.integers(1, 5))
        hidden = rows_of(count)
        states = {}
        for row in range(count):
            drawn = data.draw(st.lists(triggers, min_size=1, max_size=4))
            rules = [
                rule(index, PROMPT, layers=(1, 2), effect=Effect(0.5 + index), trigger=trigger)
                for index, trigger in enumerate(drawn)
            ]
            state = asking(*rules, exclusive=data.draw(st.booleans()))
            if state.open_candidates(LAST) is not None:
                states[row] = state
        if not states:
            return
        outputs = run(states, hidden, table)
        again = BatchDecisions()
        for row, state in states.items():
            again.add_acts(row, state.acts_on(LAST))
        forward = upload(again.plan(), CPU)
        for block in (1, 2):
            assert torch.equal(forward.apply(block, hidden, table), outputs[block])
