"""A request that goes wrong, and forwards beside the engine, are nobody else's business."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from steering_engine.errors import NotFiniteError
from steering_engine.model import SteeredModel
from steering_spec import Clamp, Selector, SteeringRule
from tests.support.engine import HeldForward, busy, forget_pages, greedy, idle, prompt, running, together
from tests.support.models import save_tiny_model


class TestNotFinite:
    async def test_only_the_request_without_finite_logits_ends(self, model: SteeredModel) -> None:
        # The longest request comes last, so the padding of the first one reaches over the keys of the second.
        mine = [greedy(length, seed=length, tokens=20) for length in (8, 12, 90)]
        alone = [await model.generate(spec) for spec in mine]
        spoilt = greedy(9, SteeringRule("endless", 1000.0, selector=Selector.steps(6)), tokens=20)
        results = await asyncio.gather(
            *(model.generate(spec) for spec in [mine[0], spoilt, *mine[1:]]), return_exceptions=True
        )
        error = results.pop(1)
        assert isinstance(error, NotFiniteError)
        assert str(error) == "the logits of token 6 are not finite; its steering is too strong"
        assert [getattr(result, "ids", result) for result in results] == [
            completion.ids for completion in alone
        ]

    async def test_its_pages_spoil_nobody_after_it(self, cramped: SteeredModel, model: SteeredModel) -> None:
        rule = SteeringRule("endless", 1000.0, selector=Selector.prompt_window(0))
        for seed in range(4):
            with pytest.raises(NotFiniteError):
                await cramped.generate(greedy(60, rule, seed=seed))
        await idle(cramped)
        specs = [greedy(30, seed=seed, tokens=20) for seed in range(3)]
        got, expected = await together(cramped, specs), await together(model, specs)
        assert [completion.ids for completion in got] == [completion.ids for completion in expected]

    @pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])
    async def test_a_model_with_one_mask_for_all_requests_keeps_them_apart_too(
        self, family: str, tmp_path: Path
    ) -> None:
        folder = save_tiny_model(tmp_path / "model", family, layer_types=["full_attention"] * 3)
        mine = [greedy(length, seed=length, tokens=10) for length in (60, 12)]
        spoilt = greedy(50, SteeringRule("endless", 1000.0, selector=Selector.prompt_positions(40)))
        with running(folder) as model:
            alone = [await model.generate(spec) for spec in mine]
            forget_pages(model)
            with HeldForward(model) as held:
                first = asyncio.create_task(model.generate(greedy(5, tokens=1)))
                await held.begun()
                tasks = [asyncio.create_task(model.generate(spec)) for spec in (spoilt, *mine)]
                await asyncio.sleep(0.2)  # all are waiting, and share their first forward
            error, *got = await asyncio.gather(*tasks, return_exceptions=True)
            await first
            assert isinstance(error, NotFiniteError)
            assert [getattr(one, "ids", one) for one in got] == [one.ids for one in alone]
            # What they left in the cache is sound as well.
            assert [(await model.generate(spec)).ids for spec in mine] == [one.ids for one in alone]

    @pytest.mark.parametrize(("chunk", "n"), [(1024, 1), (64, 1), (1024, 2), (64, 2)])
    async def test_prompt_pages_before_its_steered_row_spoil_nobody(
        self, chunk: int, n: int, folder: Path
    ) -> None:
        # Rows before the steered one are computed in one forward with it, and their pages are those of any request.
        rule = SteeringRule(
            "one",
            operation=Clamp(min=3.4e38),
            strength=1000.0,
            layers=(0,),
            selector=Selector.prompt_positions(50),
        )
        with running(folder, max_batch_tokens=chunk) as model:
            victim = greedy(60, tokens=4)
            expected = await model.generate(victim)
            forget_pages(model)
            spoilt = greedy(70, rule, tokens=4, n=n)
            assert spoilt.prompt.ids[:60] == victim.prompt.ids  # type: ignore[union-attr]
            with pytest.raises(NotFiniteError):
                await model.generate_many(spoilt)
            await idle(model)
            assert (await model.generate(victim)).tokens == expected.tokens


class TestOutside:
    async def test_a_forward_beside_the_running_engine_is_not_steered(self, model: SteeredModel) -> None:
        ids = torch.tensor([prompt(9).ids])

        def forward() -> torch.Tensor:
            with torch.no_grad():
                logits: torch.Tensor = model.loaded.model(ids, use_cache=False).logits
            return logits

        expected = forward()
        task = asyncio.create_task(model.generate(greedy(5, SteeringRule("one", 3.0), tokens=200)))
        await busy(model)
        seen = 0
        while not task.done():
            assert torch.equal(await asyncio.to_thread(forward), expected)
            seen += 1
        assert seen > 3
