"""A model that two processes share gives what one process gives, and ends with its driver."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from steering_engine.engine.limits import EngineLimits
from steering_engine.errors import EngineStoppedError
from steering_engine.model import SteeredModel
from steering_engine.vectors.file import encode_vector
from steering_spec import (
    Completion,
    ContextTrigger,
    FinishReason,
    GenerationSpec,
    PromptIds,
    SamplingParams,
    Selector,
    SteeringRule,
    SteeringSpec,
)
from tests.support.models import save_tiny_model
from tests.support.processes import processes
from tests.support.vectors import random_vector

pytestmark = pytest.mark.skipif(
    torch.accelerator.is_available(), reason="transformers shares a model over the accelerators then"
)

# So small that requests of these tests lose their pages to each other.
LIMITS = EngineLimits(cache_tokens=320, max_batch_tokens=48, max_concurrent_requests=8)


@contextmanager
def running(folder: Path, tensor_parallel: int = 1) -> Iterator[SteeredModel]:
    model = SteeredModel.load(
        str(folder), device="cpu", dtype="float32", limits=LIMITS, tensor_parallel=tensor_parallel
    )
    load_vector(model, "one", [0, 1, 2], seed=1)
    load_vector(model, "two", [1], seed=2)
    try:
        yield model
    finally:
        # In a thread, because some tests are inside a running loop here.
        thread = threading.Thread(target=lambda: asyncio.run(model.close()))
        thread.start()
        thread.join()


def load_vector(model: SteeredModel, name: str, blocks: Sequence[int], **options: Any) -> None:
    model.vectors.load(name, encode_vector(random_vector(model.loaded, name, blocks, **options)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("shared") / "tiny")


@pytest.fixture(scope="module")
def alone(folder: Path) -> Iterator[SteeredModel]:
    with running(folder) as model:
        yield model


@pytest.fixture(scope="class")  # a process shares one model at a time, and other tests share their own
def shared(folder: Path) -> Iterator[SteeredModel]:
    with running(folder, tensor_parallel=2) as model:
        yield model


def spec(
    length: int, *rules: SteeringRule, seed: int = 0, tokens: int = 12, **sampling: Any
) -> GenerationSpec:
    ids = torch.randint(2, 258, (length,), generator=torch.Generator().manual_seed(seed))
    return GenerationSpec(
        PromptIds(tuple(ids.tolist())),
        SamplingParams(**{"temperature": 0, "max_tokens": tokens, "seed": seed, **sampling}),
        SteeringSpec(rules) if rules else None,
        steering_trace=True,
    )


async def together(model: SteeredModel, specs: Sequence[GenerationSpec]) -> list[Completion]:
    return list(await asyncio.gather(*(model.generate(one) for one in specs)))


async def assert_alike(alone: SteeredModel, shared: SteeredModel, specs: Sequence[GenerationSpec]) -> None:
    for one, other in zip(await together(alone, specs), await together(shared, specs), strict=True):
        assert (one.ids, one.text, one.finish_reason) == (other.ids, other.text, other.finish_reason)
        assert one.acts == other.acts
        assert [token.logprob for token in other.tokens] == pytest.approx(
            [token.logprob for token in one.tokens], abs=1e-4
        )


def processor(model: SteeredModel) -> Any:
    return model.engine._manager.batch_processor  # type: ignore[attr-defined]


def followers(model: SteeredModel) -> Any:
    return model.engine._followers  # type: ignore[attr-defined]


async def idle(model: SteeredModel) -> None:
    for _ in range(1000):
        stats = model.stats()
        if not stats.active_requests and not stats.waiting_requests:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the engine did not come to rest")


async def busy(model: SteeredModel) -> None:
    for _ in range(10_000):
        if model.stats().active_requests:
            return
        await asyncio.sleep(0.001)
    raise AssertionError("the engine did not begin")


STEERINGS: list[tuple[SteeringRule, ...]] = [
    (),
    (SteeringRule("one", 0.5),),
    (
        SteeringRule("two", selector=Selector.prompt_window(3, 9)),
        SteeringRule("one", selector=Selector.steps(2)),
    ),
    (SteeringRule("two", -1.0, selector=Selector.step_window(5)),),
    (SteeringRule("two", 2.0), SteeringRule("one", 2.0)),
]


class TestTokens:
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    async def test_a_batch_of_all_steerings_is_that_of_one_process(
        self, temperature: float, alone: SteeredModel, shared: SteeredModel
    ) -> None:
        specs = [
            spec(20 + 7 * n, *rules, seed=n, temperature=temperature) for n, rules in enumerate(STEERINGS)
        ]
        await assert_alike(alone, shared, specs)
        plain = await shared.generate(replace(specs[1], steering=None))
        assert plain.ids != (await shared.generate(specs[1])).ids

    async def test_prompts_share_pages_as_in_one_process(
        self, alone: SteeredModel, shared: SteeredModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows: dict[str, list[int]] = {}
        for name, model in (("alone", alone), ("shared", shared)):
            processor(model).cache.evict_cached_blocks()
            rows[name] = count_rows(model, monkeypatch)
            for steering in (STEERINGS[0], STEERINGS[0], STEERINGS[3], STEERINGS[3], STEERINGS[2]):
                await model.generate(spec(50, *steering, tokens=2))
        assert rows["shared"] == rows["alone"]
        assert sum(rows["shared"]) == 51 + 3 + 3 + 3 + 51
        await assert_alike(alone, shared, [spec(50, *rules) for rules in STEERINGS])

    async def test_requests_that_lose_their_pages_go_on_as_in_one_process(
        self, alone: SteeredModel, shared: SteeredModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        restarts = count_restarts(shared, monkeypatch)
        specs = [
            spec(30 + n, *rules, seed=n, tokens=70, temperature=1.0) for n, rules in enumerate(STEERINGS * 2)
        ]
        await assert_alike(alone, shared, specs)
        assert restarts

    async def test_a_vector_that_is_loaded_later_steers_in_every_process(
        self, alone: SteeredModel, shared: SteeredModel
    ) -> None:
        context = (await alone.generate(spec(25))).ids[3:6]
        for model in (alone, shared):
            load_vector(model, "late", [0, 2], seed=9, contexts=[context], min_match=3)
        rule = SteeringRule("late", trigger=ContextTrigger(hold_steps=2))
        await assert_alike(alone, shared, [spec(25, rule), spec(25, SteeringRule("late"))])
        assert [act.step for act in (await shared.generate(spec(25, rule))).acts] == [6, 7]

    async def test_a_stop_sequence_ends_a_request_as_in_one_process(
        self, alone: SteeredModel, shared: SteeredModel
    ) -> None:
        text = (await alone.generate(spec(33, tokens=20, seed=4))).text
        stopping = spec(33, tokens=20, seed=4, stop=(text[5:7],))
        await assert_alike(alone, shared, [stopping, *(spec(20, *rules) for rules in STEERINGS)])
        assert (await shared.generate(stopping)).finish_reason is FinishReason.STOP_SEQUENCE

    async def test_a_cancelled_request_frees_its_pages_and_the_others_go_on(
        self, alone: SteeredModel, shared: SteeredModel
    ) -> None:
        async with aclosing(shared.stream(spec(40, *STEERINGS[1], tokens=100))) as stream:
            await anext(stream)
            others = asyncio.create_task(assert_alike(alone, shared, [spec(20, *one) for one in STEERINGS]))
            await anext(stream)
        await others
        await idle(shared)
        assert shared.stats().free_cache_tokens == LIMITS.cache_tokens

    async def test_pages_are_copied_in_every_process(self, alone: SteeredModel, shared: SteeredModel) -> None:
        one, other = spec(17, seed=20, tokens=8), spec(17, seed=21, tokens=8)
        before = (await shared.generate(one)).ids
        for model in (alone, shared):
            cache = processor(model).cache
            cache.evict_cached_blocks()
            await model.generate(one)
            await model.generate(other)
            await idle(model)
            # The first page of `one` gets what the first page of `other` holds, so that `one` goes on from that.
            pages = list(next(iter(cache.cache_allocators.values())).ledger.hash_to_block.values())
            cache.perform_cache_copy({name: ([pages[1]], [pages[0]]) for name in cache.cache_allocators})
        await assert_alike(alone, shared, [one])
        assert (await shared.generate(one)).ids != before
        for model in (alone, shared):
            processor(model).cache.evict_cached_blocks()


def count_rows(model: SteeredModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of every forward from now on."""
    counts: list[int] = []
    runner = processor(model).model_runner
    compute_batch = runner.compute_batch

    def count(*args: Any) -> None:
        counts.append(sum(one.query_length for one in runner.inputs_and_outputs.requests_in_batch))
        compute_batch(*args)

    monkeypatch.setattr(runner, "compute_batch", count)
    return counts


def count_restarts(model: SteeredModel, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Requests that had to give up their pages from now on."""
    restarts: list[str] = []
    scheduler = processor(model).scheduler
    add = scheduler.add_waiting_request

    def note(state: Any) -> None:
        if state._true_initial_tokens:
            restarts.append(state.request_id)
        add(state)

    monkeypatch.setattr(scheduler, "add_waiting_request", note)
    return restarts


@pytest.mark.parametrize("family", ["gpt_neox", "gemma2"])
async def test_other_families_give_the_tokens_of_one_process_and_closing_ends_the_followers(
    family: str, tmp_path: Path
) -> None:
    folder = save_tiny_model(tmp_path / family, family)
    with running(folder) as alone, running(folder, tensor_parallel=2) as shared:
        await assert_alike(alone, shared, [spec(20 + n, *rules) for n, rules in enumerate(STEERINGS)])
        members = [member.pid for member in followers(shared)._members]
        assert len(members) == 1
        await shared.close()
        await shared.close()
        assert not torch.distributed.is_initialized()
        assert not set(members) & set(processes())
        with pytest.raises(EngineStoppedError):
            await shared.generate(spec(5))


async def test_when_a_follower_ends_every_request_is_told_which_one(folder: Path) -> None:
    with running(folder, tensor_parallel=2) as shared:
        requests = [
            asyncio.create_task(shared.generate(spec(20, seed=seed, tokens=200))) for seed in range(3)
        ]
        await busy(shared)
        followers(shared)._members[0].kill()
        for request in requests:
            with pytest.raises(EngineStoppedError, match=r"process 1 of 2 .* ended \(signal 9\)"):
                await asyncio.wait_for(request, 60)
        with pytest.raises(EngineStoppedError):
            await asyncio.wait_for(shared.generate(spec(5)), 60)


def test_a_program_that_forgets_to_close_its_engine_ends_as_it_wants(folder: Path) -> None:
    program = (
        "import sys; from steering_engine.model import SteeredModel\n"
        f"SteeredModel.load({str(folder)!r}, device='cpu', tensor_parallel=2)\n"
        "sys.exit(3)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")
