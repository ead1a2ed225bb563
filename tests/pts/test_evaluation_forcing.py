from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from steering_engine.model import SteeredModel
from steering_pts.evaluation.forcing import Decision, Forcing, Start, known_alternatives
from steering_pts.evaluation.samples import Sample, sample_of
from steering_pts.evaluation.sampling import Wanted
from steering_spec import FinishReason, GenerationSpec, PromptIds, SamplingParams

PROMPT = (120, 130)
MAX_TOKENS = 4
SAMPLING = SamplingParams(temperature=1.0, max_tokens=MAX_TOKENS)
# Odd ids are worse than the even ones after them; ids up to 100 end a completion.
WORSE = {token: token + 1 for token in range(151, 257, 2)}
EVERYWHERE = [(token,) for token in range(258)]


def test_a_token_is_known_to_be_worse_where_all_decisions_agree() -> None:
    decisions = [
        Decision((1, 2), chosen_id=10, rejected_id=20),
        Decision((7, 2), chosen_id=10, rejected_id=20),
        Decision((1, 2), chosen_id=11, rejected_id=30),
        Decision((1, 2), chosen_id=12, rejected_id=30),  # another token is better here
        Decision((1, 9), chosen_id=13, rejected_id=40),  # not at these contexts
        Decision((1, 2), chosen_id=20, rejected_id=50),  # better than one, worse than another
    ]

    known = known_alternatives([(3, 1, 2)], 1, decisions)

    assert known is not None
    assert known.better == {20: 10}
    assert known.of((5, 2), 20) == 10
    assert known.of((5, 9), 20) is None
    assert known.of((5, 2), 30) is None


def test_nothing_is_known_without_decisions_or_contexts() -> None:
    assert known_alternatives([(1,)], 1, []) is None
    assert known_alternatives([], 0, [Decision((1,), 2, 3)]) is None


@pytest.fixture(scope="module")
def forced(model: SteeredModel) -> tuple[list[Start], list[Sample]]:
    """Unsteered completions of the tiny model, and what became of them."""

    def complete(wanted: Sequence[Wanted]) -> list[tuple[Sample, ...]]:
        async def make() -> list[tuple[Sample, ...]]:
            specs = [GenerationSpec(one.prompt, one.sampling) for one in wanted]
            made = await asyncio.gather(*(model.generate_many(spec) for spec in specs))
            return [tuple(map(sample_of, completions)) for completions in made]

        return asyncio.run(make())

    sampling = SamplingParams(max_tokens=MAX_TOKENS, seed=5, n=40)
    (samples,) = complete([Wanted(PromptIds(PROMPT), sampling, None)])
    starts = [Start("p", index, PROMPT, sample, MAX_TOKENS) for index, sample in enumerate(samples)]
    decisions = [Decision(PROMPT, better, worse) for worse, better in WORSE.items()]
    known = known_alternatives(EVERYWHERE, 1, decisions)
    assert known is not None
    return starts, Forcing([known], SAMPLING, 0, model.loaded.tokenizer, complete).force(starts)


def test_no_worse_token_is_left(forced: tuple[list[Start], list[Sample]]) -> None:
    _, samples = forced

    assert all(token not in WORSE for sample in samples for token in sample.ids)


def test_a_completion_is_itself_up_to_the_first_worse_token_which_is_replaced(
    forced: tuple[list[Start], list[Sample]],
) -> None:
    changed = 0
    for start, sample in zip(*forced, strict=True):
        before = start.sample
        first = next((step for step, token in enumerate(before.ids) if token in WORSE), None)
        if first is None:
            assert sample == before
            continue
        changed += 1
        assert sample.ids[: first + 1] == (*before.ids[:first], WORSE[before.ids[first]])
        assert min(sample.steered_steps) == first
        assert all(sample.ids[step] in WORSE.values() for step in sample.steered_steps)
    assert 10 <= changed < 40


def test_what_follows_ends_as_completions_end(
    forced: tuple[list[Start], list[Sample]], model: SteeredModel
) -> None:
    decode = model.loaded.tokenizer.backend_tokenizer.decode
    ends = set()
    for sample in forced[1]:
        ends.add(sample.finish)
        assert len(sample.ids) <= MAX_TOKENS
        assert (sample.finish is FinishReason.LENGTH) == (sample.ids[-1] > 100)
        # Bytes at the very end that are no whole character are no text.
        assert decode(list(sample.ids), skip_special_tokens=True).startswith(sample.text)
    assert ends == {FinishReason.EOS, FinishReason.LENGTH}
