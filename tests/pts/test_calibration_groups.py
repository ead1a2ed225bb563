"""Several groups: each on its own, then all together."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import torch

from steering_engine.model import SteeredModel
from steering_engine.vectors.file import encode_vector, parse_vector
from steering_engine.vectors.schema import SteeringVector
from steering_pts.calibration.calibrating import calibrate_groups
from steering_pts.calibration.candidates import CandidateGroup
from steering_pts.calibration.log import CalibrationLog
from steering_pts.calibration.options import CalibrationOptions
from steering_pts.calibration.results import CalibrationResult
from steering_pts.calibration.trials import Bench
from steering_pts.data import Problem
from steering_pts.errors import DataError
from steering_pts.oracles.registry import make_oracle
from steering_pts.progress import RunProgress
from steering_pts.prompts import encode_prompts
from steering_pts.settings import SamplerSettings
from tests.support.calibration import prompt_end
from tests.support.pts import ORACLE, make_problems, rollouts_of, save_ending_model
from tests.support.vectors import random_vector

PROBLEMS = make_problems(24)
LONG = SamplerSettings(max_tokens=64)  # a model with large weights rarely ends early
OPTIONS = CalibrationOptions(multiples=(1.0,), triggers=("context",), share=1.0)


@pytest.fixture(scope="module")
def sharp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SteeredModel]:
    folder = save_ending_model(tmp_path_factory.mktemp("models") / "sharp", initializer_range=0.4)
    model = SteeredModel.load(str(folder))
    yield model
    asyncio.run(model.close())


def group(
    model: SteeredModel,
    name: str,
    tokens: dict[str, float],
    contexts: Sequence[Sequence[int]] = (),
    min_match: int = 3,
) -> CandidateGroup:
    """A vector at the last block, before the first token, towards a sum of tokens; at every prompt if not said."""
    loaded = model.loaded
    block = loaded.block_count - 1
    rows = torch.nn.functional.normalize(loaded.model.lm_head.weight.detach(), dim=-1)
    summed = sum(
        (weight * rows[loaded.tokenizer.convert_tokens_to_ids(token)] for token, weight in tokens.items()),
        torch.zeros(loaded.hidden_size),
    )
    made = random_vector(
        loaded,
        name,
        [block],
        strength=400.0,
        contexts=contexts or [prompt_end(loaded)],
        min_match=min_match,
        method=name,
    )
    return loaded_group(model, dataclasses.replace(made, directions={block: summed / summed.norm()}))


def loaded_group(model: SteeredModel, vector: SteeringVector) -> CandidateGroup:
    data = encode_vector(vector)
    name = vector.metadata.name
    found = CandidateGroup(name, {name: parse_vector(data, name)}, 1)
    model.vectors.load(found.ids[name], data)
    return found


def calibrate(
    model: SteeredModel,
    groups: Sequence[CandidateGroup],
    folder: Path,
    options: CalibrationOptions = OPTIONS,
    problems: Sequence[Problem] = PROBLEMS,
) -> CalibrationResult:
    prompts = encode_prompts(model, problems, raw=False)
    by_id = {problem.id: problem for problem in problems}
    with rollouts_of(model, LONG) as source, closing(CalibrationLog(folder / "log.jsonl", {})) as log:
        bench = Bench(model, source, make_oracle(ORACLE), by_id, prompts, LONG, 0, RunProgress(quiet=True))
        return calibrate_groups(groups, bench, options, log, problems)


def test_two_that_help_alone_and_harm_each_other_are_not_both_kept(
    sharp: SteeredModel, tmp_path: Path
) -> None:
    # Each writes an ASCII character; what they share writes another one, and wins where both act.
    groups = [
        group(sharp, "space", {"Ġ": 1.0, "ÿ": 0.6}),
        group(sharp, "newline", {"Ċ": 1.0, "ÿ": 0.6}),
    ]

    result = calibrate(sharp, groups, tmp_path)

    alone = [one.effect.lift.low95 for one in result.groups if one.effect is not None]
    assert len(alone) == 2
    assert min(alone) > 0
    assert sum(one.kept for one in result.groups) == 1
    (dropped,) = [one for one in result.groups if not one.kept]
    assert dropped.reason.startswith("beside the others it changes success by -0.")
    (kept,) = [one for one in result.groups if one.kept]
    assert result.together == kept.effect


def test_two_that_help_and_do_not_disturb_each_other_are_both_kept(
    sharp: SteeredModel, tmp_path: Path
) -> None:
    prompts = list(encode_prompts(sharp, PROBLEMS, raw=False).values())
    # So much of a prompt tells its question.
    groups = [
        group(sharp, name, {"Ġ": 1.0}, [one[-24:] for one in prompts[first::2]], min_match=20)
        for first, name in enumerate(("even", "odd"))
    ]

    result = calibrate(sharp, groups, tmp_path)

    assert all(one.kept for one in result.groups)
    assert all(one.effect is not None and one.effect.steered_steps < 1 for one in result.groups)
    assert result.together is not None
    assert result.together.lift.low95 > 0
    assert result.together.steered_steps == 1.0


def test_where_everything_diverges_too_far_the_least_divergence_is_told(
    sharp: SteeredModel, tmp_path: Path
) -> None:
    vector = random_vector(sharp.loaded, "wild", [0], strength=40.0)
    options = CalibrationOptions(multiples=(1.0, 2.0))  # without contexts and probes it acts at every step

    (one,) = calibrate(sharp, [loaded_group(sharp, vector)], tmp_path, options).groups

    assert (one.chosen, one.effect, one.kept) == (None, None, False)
    assert one.reason.startswith("no setting within 0.02 nats per token; the least divergence is ")


def test_a_group_without_the_data_of_any_trigger_is_told(sharp: SteeredModel, tmp_path: Path) -> None:
    vector = random_vector(sharp.loaded, "bare", [0])

    (one,) = calibrate(sharp, [loaded_group(sharp, vector)], tmp_path).groups

    assert one.reason == "no vector file of the group has the data for any of the triggers"
    assert one.rollouts == 0


def test_too_few_problems_and_a_missing_field_are_told_at_once(sharp: SteeredModel, tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, by="form")

    with pytest.raises(DataError) as caught:
        calibrate(sharp, [], tmp_path, options, PROBLEMS[:3])

    assert len(caught.value.problems) == 2
