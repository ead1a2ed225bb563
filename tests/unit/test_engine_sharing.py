"""Pages that requests share."""

from __future__ import annotations

from dataclasses import replace

import pytest

from steering_engine.model import SteeredModel
from steering_spec import PromptIds, Selector, SteeringRule
from tests.support.engine import LETTER, forget_pages, greedy, idle, processor, prompt


class TestSharing:
    """Whole pages of prompts are computed once, and never for a request that steers them otherwise."""

    LENGTH = 50  # three whole pages and two rows

    STEERED = (
        SteeringRule("one", 0.4),
        SteeringRule("one", -0.4),
        SteeringRule("two", 0.4),
        SteeringRule("one", 0.4, layers=(1,)),
        SteeringRule("one", 0.4, selector=Selector.prompt_positions(20)),
        SteeringRule("one", 0.4, selector=Selector.prompt_window(0)),
    )

    @pytest.mark.parametrize("second", [None, *STEERED])
    @pytest.mark.parametrize("first", [None, STEERED[0], STEERED[4]])
    async def test_warm_equals_cold(
        self, first: SteeringRule | None, second: SteeringRule | None, model: SteeredModel
    ) -> None:
        specs = [greedy(self.LENGTH, *([rule] if rule else []), tokens=40) for rule in (first, second)]
        await idle(model)
        forget_pages(model)
        cold = await model.generate(specs[1])
        forget_pages(model)
        await model.generate(specs[0])
        warm = await model.generate(specs[1])
        assert warm.ids == cold.ids
        assert warm.acts == cold.acts
        assert warm.usage.steered_rows == cold.usage.steered_rows
        assert [token.logprob for token in warm.tokens] == pytest.approx(
            [token.logprob for token in cold.tokens], abs=3e-6
        )

    @pytest.mark.parametrize(
        ("first", "second", "rows"),
        [
            (None, None, 2),
            (None, SteeringRule("one"), 2),  # steered from its last prompt row on, which is in no whole page
            (SteeringRule("one"), None, 2),
            (SteeringRule("one"), SteeringRule("one", 2.0), 2),
            (SteeringRule("one"), SteeringRule("two"), 2),
            (None, SteeringRule("one", selector=Selector.prompt_positions(20)), 50 - 16),
            (None, SteeringRule("one", selector=Selector.prompt_positions(16)), 50 - 16),
            (None, SteeringRule("one", selector=Selector.prompt_positions(15)), 50),
            (SteeringRule("one", selector=Selector.prompt_positions(20)), None, 50 - 16),
            (
                SteeringRule("one", selector=Selector.prompt_positions(20)),
                SteeringRule("one", selector=Selector.prompt_positions(20)),
                2,
            ),
            (
                SteeringRule("one", selector=Selector.prompt_positions(20)),
                SteeringRule("one", 2.0, selector=Selector.prompt_positions(20)),
                50 - 16,
            ),
            (None, SteeringRule("one", 0.0), 2),
        ],
    )
    async def test_pages_before_the_first_steered_row_are_shared_and_no_others(
        self,
        first: SteeringRule | None,
        second: SteeringRule | None,
        rows: int,
        model: SteeredModel,
        computed_rows: list[int],
    ) -> None:
        await idle(model)
        forget_pages(model)
        await model.generate(greedy(self.LENGTH, *([first] if first else []), tokens=2))
        assert sum(computed_rows) == self.LENGTH + 1
        computed_rows.clear()
        await model.generate(greedy(self.LENGTH, *([second] if second else []), tokens=2))
        assert sum(computed_rows) == rows + 1

    SHORT = 10
    # Every token is the letter, whatever else steers: so requests that are steered otherwise have equal ids.
    LETTERS = (SteeringRule("one"), SteeringRule("letter", 0.02))

    async def test_a_steered_request_never_adopts_pages_of_equal_ids_while_it_generates(
        self, model: SteeredModel
    ) -> None:
        steered = greedy(self.SHORT, *self.LETTERS, tokens=60)
        await idle(model)
        forget_pages(model)
        cold = await model.generate(steered)
        assert set(cold.ids) == {LETTER}
        forget_pages(model)
        unsteered = PromptIds((*prompt(self.SHORT).ids, *[LETTER] * 60))
        await model.generate(replace(greedy(1, tokens=2), prompt=unsteered))
        warm = await model.generate(steered)
        assert [token.logprob for token in warm.tokens] == pytest.approx(
            [token.logprob for token in cold.tokens], abs=3e-6
        )

    async def test_an_unsteered_request_never_shares_what_a_steered_one_generated(
        self, model: SteeredModel, computed_rows: list[int]
    ) -> None:
        await idle(model)
        forget_pages(model)
        await model.generate(greedy(self.SHORT, *self.LETTERS, tokens=60))
        computed_rows.clear()
        unsteered = PromptIds((*prompt(self.SHORT).ids, *[LETTER] * 60))
        await model.generate(replace(greedy(1, tokens=1), prompt=unsteered))
        assert sum(computed_rows) == self.SHORT + 60

    async def test_the_ledger_has_one_page_for_equal_rows_and_two_for_different_ones(
        self, model: SteeredModel
    ) -> None:
        ledger = next(iter(processor(model).cache.cache_allocators.values())).ledger
        await idle(model)
        forget_pages(model)
        everywhere = SteeringRule("one", selector=Selector.prompt_window(0))
        for rule, pages in ((None, 3), (None, 3), (everywhere, 6), (everywhere, 6)):
            await model.generate(greedy(self.LENGTH, *([rule] if rule else []), tokens=2))
            assert len(ledger.hash_to_block) == pages
