"""The CUDA kernel against the same plan in torch: every operation, gate and question, in one batch."""

from __future__ import annotations

import random

import pytest
import torch

from steering_engine.steering.batch import BatchDecisions
from steering_engine.steering.forward import upload
from steering_engine.steering.ops import Effect
from steering_engine.steering.resident import ResidentPlan
from steering_engine.steering.state import SteeringState
from steering_engine.steering.table import DirectionTable
from tests.support.steering import plan_of, probe, rule, similarity

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PROMPT = (1, 2, 3)
LAST = len(PROMPT) - 1
BLOCKS, ROWS, WIDTH = 3, 40, 200
EFFECTS = [Effect(0.7), Effect(-2.0, norm_preserved=1.0), Effect(0.0, 1.0), Effect(0.0, 0.5, -0.1, 0.2)]


@pytest.fixture(scope="module")
def table() -> DirectionTable:
    table = DirectionTable(BLOCKS, WIDTH, torch.device("cuda"))
    torch.manual_seed(1)
    for block in range(BLOCKS):
        for _ in range(6):
            table.add(block, torch.nn.functional.normalize(torch.randn(WIDTH), dim=0))
    return table


def drawn_batch(rng: random.Random) -> tuple[int, BatchDecisions]:
    """A random batch of up to `ROWS` rows, some of which ask questions."""
    count = rng.randint(1, ROWS)
    batch = BatchDecisions()
    for row in range(count):
        rules = []
        for index in range(rng.randint(0, 3)):
            trigger = rng.choice(
                [
                    None,
                    probe(rng.randint(1, 6), block=rng.randint(0, 1), threshold=rng.uniform(-1, 1)),
                    similarity(1, 4, 5, block=1, min_cosine=rng.uniform(-0.2, 0.2)),
                ]
            )
            effect = rng.choice(EFFECTS)
            rules.append(rule(index, PROMPT, layers=(1, 2), effect=effect, trigger=trigger))
        state = SteeringState(plan_of(PROMPT, *rules, exclusive=rng.random() < 0.5), PROMPT)
        candidates = state.open_candidates(LAST)
        if candidates is None:
            batch.add_acts(row, state.acts_on(LAST))
        else:
            batch.add_candidates(row, candidates, exclusive=state.plan.exclusive, owner=row)
    return count, batch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernel_does_what_the_plan_in_torch_does(dtype: torch.dtype, table: DirectionTable) -> None:
    rng = random.Random(0)
    torch.manual_seed(0)
    device = torch.device("cuda")
    resident = ResidentPlan(BLOCKS, ROWS, device)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 6e-2, torch.float16: 8e-3}[dtype]
    for _ in range(40):
        count, batch = drawn_batch(rng)
        hidden = torch.randn(count, WIDTH, device=device).to(dtype)
        forward = upload(batch.plan(), device)
        resident.load(batch.plan())
        for block in range(BLOCKS):
            expected = forward.apply(block, hidden, table)
            found = resident.apply(block, hidden.clone(), table)
            assert (found - expected).abs().max() <= tolerance
            assert torch.equal(found[(expected == hidden).all(-1)], hidden[(expected == hidden).all(-1)])
        for owner, answers in forward.answers().items():
            for index, answer in answers.items():
                other = resident.answers()[owner][index]
                assert other.fires == answer.fires
                assert other.score == pytest.approx(answer.score, abs=1e-5)


def test_a_replayed_graph_does_what_the_buffers_say_then(table: DirectionTable) -> None:
    device = torch.device("cuda")
    resident = ResidentPlan(BLOCKS, ROWS, device)
    torch.manual_seed(0)
    given = torch.randn(ROWS, WIDTH, device=device)
    hidden = given.clone()
    resident.load(BatchDecisions().plan())
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        resident.apply(1, hidden, table)  # compiles the kernel, which a capture may not
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        resident.apply(1, hidden, table)
    assert torch.equal(hidden, given)
    rng = random.Random(3)
    for _ in range(10):
        count, batch = drawn_batch(rng)
        hidden.copy_(given)
        resident.load(batch.plan())
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(hidden[count:], given[count:])
        asked = any(question.reading.block == 0 for question in batch.plan().questions)
        if not asked:  # block 0, which is not replayed here, would have answered those
            expected = upload(batch.plan(), device).apply(1, given, table)
            assert (hidden - expected).abs().max() <= 1e-5
