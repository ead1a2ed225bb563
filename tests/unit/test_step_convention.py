"""The convention: step j is the row that predicts token j, so a rule at step j changes token j and nothing before it.

All comparisons are of bits, in an engine that is deterministic.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from steering_engine.blocks import find_blocks
from steering_engine.model import SteeredModel
from steering_engine.vectors.file import encode_vector
from steering_engine.vectors.schema import Probe
from steering_spec import (
    ContextTrigger,
    ProbeTrigger,
    Selector,
    SimilarityTrigger,
    SteeringAct,
    SteeringRule,
    SteeringSpec,
    Trigger,
    TriggerKind,
)
from tests.support.direct import Got, engine_with, get, request, watched_logits
from tests.support.engine import forget_pages, idle
from tests.support.intervention import HOWS, How
from tests.support.lively import lively_model, lively_vector, residuals, some_ids

PROMPT = tuple(some_ids(12, seed=5))
LAST = len(PROMPT) - 1
TOKENS = 7
EVERY = Selector.every_step()


Logits = list[torch.Tensor]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SteeredModel]:
    loaded = lively_model(tmp_path_factory.mktemp("convention"), "qwen3")
    vectors = {"v": lively_vector(loaded, "v", seed=9)}
    model = engine_with(loaded, vectors, deterministic=True, cache_tokens=1024, max_batch_tokens=64)
    yield model
    asyncio.run(model.close())


@pytest.fixture(scope="module")
def plain(model: SteeredModel) -> tuple[Got, Logits]:
    """The unsteered completion."""
    return asyncio.run(run(model))


async def run(model: SteeredModel, *rules: SteeringRule) -> tuple[Got, Logits]:
    """What the prompt gives, and the logits of each step."""
    await idle(model)
    forget_pages(model)
    with watched_logits(model) as logits:
        got = await get(model, request(model, "it", PROMPT, SteeringSpec(rules), tokens=TOKENS))
    return got, logits["it"]


def pivotal_at(model: SteeredModel, plain: Got, step: int) -> str:
    """A vector whose context, probe and centroid (of block 0) know one step of the unsteered completion."""
    name = f"pivotal-at-{step}"
    ids = [*PROMPT, *plain.ids]
    row = LAST + step
    rows = residuals(model.loaded, ids[:-1])[0]
    # The smallest weight whose product is 1 with the row, and 0 with those of the steps before it.
    weight = torch.linalg.pinv(rows[LAST : row + 1].double())[:, -1]
    vector = replace(
        lively_vector(model.loaded, name, seed=9, reading=[0], contexts=[ids[row - 2 : row + 1]]),
        probes={0: Probe(20 * weight.float(), -10.0)},
        centroids={0: rows[row][None].clone()},
    )
    model.vectors.load(name, encode_vector(vector))
    return name


def changed_from(logits: Logits, plain: Logits) -> int:
    """The first step whose logits are other bits."""
    pairs = enumerate(zip(logits, plain, strict=True))
    return next(step for step, (one, other) in pairs if not torch.equal(one, other))


TRIGGERS: dict[TriggerKind, Trigger] = {
    TriggerKind.CONTEXT: ContextTrigger(3, max_firings=1),
    TriggerKind.PROBE: ProbeTrigger(0, 0.99, max_firings=1),
    TriggerKind.SIMILARITY: SimilarityTrigger(0, 0.999, max_firings=1),
}
SCORES: dict[TriggerKind | None, Any] = {
    None: None,
    TriggerKind.CONTEXT: 3.0,  # tokens
    TriggerKind.PROBE: pytest.approx(1 / (1 + math.exp(-10)), abs=1e-5),
    TriggerKind.SIMILARITY: pytest.approx(1.0, abs=1e-5),
}


@pytest.mark.parametrize("step", [0, 1, 4])
@pytest.mark.parametrize("kind", [None, *TRIGGERS])
@pytest.mark.parametrize("how", HOWS[:4], ids=lambda how: f"{how.operation} x {how.strength}")
async def test_a_rule_at_step_j_changes_token_js_logits_and_nothing_before_them(
    how: How, kind: TriggerKind | None, step: int, model: SteeredModel, plain: tuple[Got, Logits]
) -> None:
    where = EVERY if kind else Selector.steps(step)  # a trigger finds the step by itself
    vector = pivotal_at(model, plain[0], step)
    rule = SteeringRule(vector, how.strength, (0, 2), how.operation, where, TRIGGERS[kind] if kind else None)
    got, logits = await run(model, rule)
    assert got.acts == (SteeringAct(0, (0, 2), step=step, trigger=kind, score=SCORES[kind]),)
    assert changed_from(logits, plain[1]) == step


async def test_a_context_that_generated_token_j_completes_acts_at_step_j_plus_1(
    model: SteeredModel, plain: tuple[Got, Logits]
) -> None:
    j = 2
    context = plain[0].ids[j - 2 : j + 1]
    model.vectors.load("seen", encode_vector(lively_vector(model.loaded, "seen", seed=9, contexts=[context])))
    got, logits = await run(model, SteeringRule("seen", trigger=ContextTrigger(3)))
    assert got.acts[0].step == j + 1
    assert changed_from(logits, plain[1]) == j + 1


async def test_a_context_that_the_prompt_completes_acts_at_step_0(
    model: SteeredModel, plain: tuple[Got, Logits]
) -> None:
    context = PROMPT[-3:]
    model.vectors.load(
        "asked", encode_vector(lively_vector(model.loaded, "asked", seed=9, contexts=[context]))
    )
    got, logits = await run(model, SteeringRule("asked", trigger=ContextTrigger(3)))
    assert got.acts[0].step == 0
    assert changed_from(logits, plain[1]) == 0


@pytest.mark.parametrize("kind", list(TRIGGERS))
async def test_a_firing_at_step_j_that_is_held_for_3_steps_acts_at_j_and_the_two_after_it(
    kind: TriggerKind, model: SteeredModel, plain: tuple[Got, Logits]
) -> None:
    trigger = replace(TRIGGERS[kind], hold_steps=3)
    got, _ = await run(model, SteeringRule(pivotal_at(model, plain[0], 2), trigger=trigger))
    assert [(act.step, act.score) for act in got.acts] == [(2, SCORES[kind]), (3, None), (4, None)]


async def test_a_token_set_acts_at_the_step_that_follows_its_token(
    model: SteeredModel, plain: tuple[Got, Logits]
) -> None:
    ids = plain[0].ids
    j = next(j for j in range(1, TOKENS) if ids[j] not in (*ids[:j], PROMPT[-1]))
    got, logits = await run(model, SteeringRule("v", selector=Selector.after_tokens(ids[j])))
    assert got.acts[0].step == j + 1
    assert changed_from(logits, plain[1]) == j + 1


async def test_a_prompt_position_changes_its_own_row_and_none_before_it(model: SteeredModel) -> None:
    async def rows(*rules: SteeringRule) -> torch.Tensor:
        """What the last block gives, at each row of the prompt and of the steps."""
        found: list[torch.Tensor] = []
        handle = find_blocks(model.loaded.model)[-1].register_forward_hook(
            lambda _module, _args, output: found.append(output[0].clone())
        )
        await run(model, *rules)
        handle.remove()
        prompt, *steps = found
        return torch.cat([prompt[: len(PROMPT)], *(step[:1] for step in steps)])

    plain_rows = await rows()
    for position in (0, 5, LAST - 1, -1, -4):
        changed = await rows(SteeringRule("v", layers=(0,), selector=Selector.prompt_positions(position)))
        row = position % len(PROMPT)
        assert torch.equal(changed[:row], plain_rows[:row])
        assert not torch.equal(changed[row], plain_rows[row])


async def test_the_last_prompt_position_and_step_0_are_one_row(model: SteeredModel) -> None:
    by_step = await run(model, SteeringRule("v", selector=Selector.steps(0)))
    by_position = await run(model, SteeringRule("v", selector=Selector.prompt_positions(-1)))
    assert all(map(torch.equal, by_step[1], by_position[1]))
    assert by_step[0].acts == (SteeringAct(0, (0, 1, 2), step=0),)
    assert by_position[0].acts == (SteeringAct(0, (0, 1, 2), prompt_position=LAST),)


@pytest.mark.parametrize(("read", "influenced"), [(0, False), (1, True)])
async def test_a_probe_reads_its_block_before_rules_act_there_and_after_those_of_earlier_blocks(
    read: int, influenced: bool, model: SteeredModel
) -> None:
    asking = SteeringRule("v", 0.5, (1,), trigger=ProbeTrigger(read, 0.001))
    alone, _ = await run(model, asking)
    beside, _ = await run(model, SteeringRule("v", layers=(0, 1)), asking)
    first, second = (next(act.score for act in one.acts if act.trigger) for one in (alone, beside))
    assert (first != second) is influenced
