"""What competes: the candidates of a folder, and the settings and triggers that their files have the data for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from steering_engine.loading import LoadedModel, load_model
from steering_engine.vectors.schema import RecommendedTrigger
from steering_pts.calibration.candidates import CandidateGroup, read_candidates
from steering_pts.calibration.options import CalibrationOptions
from steering_pts.calibration.settings import settings_of, triggers_of
from steering_pts.errors import SearchError, VectorsError
from tests.support.calibration import write_candidates
from tests.support.vectors import random_vector, save_random_vector


@pytest.fixture(scope="module")
def loaded(ending_folder: Path) -> LoadedModel:
    return load_model(str(ending_folder))


@pytest.fixture(scope="module")
def candidates(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_candidates(tmp_path_factory.mktemp("candidates"), loaded)


def test_groups_come_in_the_order_of_the_index(candidates: Path) -> None:
    groups = read_candidates(candidates)

    assert [(group.name, list(group.vectors), group.events) for group in groups] == [
        ("ascii", ["helpful", "random"], 7),
        ("idle", ["random"], 5),
    ]


def test_everything_that_is_wrong_with_candidates_is_told_at_once(candidates: Path, tmp_path: Path) -> None:
    folder = tmp_path / "candidates"
    shutil.copytree(candidates, folder)
    (folder / "ascii-random.safetensors").unlink()
    (folder / "idle-random.safetensors").write_bytes(b"no vector")

    with pytest.raises(VectorsError) as caught:
        read_candidates(folder)

    assert "ascii-random.safetensors: No such file or directory" in str(caught.value)
    assert "idle-random.safetensors: not a sound safetensors file" in str(caught.value)


def test_files_of_any_name_are_groups_by_names_that_vectors_may_have(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    for name in ("copy", "My Best (v2)", "my-best-v2", "Ünï"):
        save_random_vector(tmp_path, loaded, "mine", [0]).rename(tmp_path / f"{name}.safetensors")

    groups = read_candidates(tmp_path)

    assert [group.name for group in groups] == ["my-best-v2", "copy", "my-best-v2-2", "n"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Invalid JSON"),
        ('{"schema": "steering.candidates/2", "groups": []}', "schema: Input should be"),
        ('{"schema": "steering.candidates/1", "groups": [{"name": "A", "events": 1}]}', "groups.0.name"),
    ],
)
def test_a_wrong_index_is_refused_with_the_place(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "index.json").write_text(text, encoding="utf-8")

    with pytest.raises(VectorsError, match="is no index of candidates") as caught:
        read_candidates(tmp_path)
    assert said in str(caught.value)


def test_a_file_outside_of_the_folder_is_refused(candidates: Path, tmp_path: Path) -> None:
    folder = tmp_path / "candidates"
    shutil.copytree(candidates, folder)
    text = (folder / "index.json").read_text(encoding="utf-8")
    (folder / "index.json").write_text(text.replace('"idle-', '"../idle-'), encoding="utf-8")

    with pytest.raises(VectorsError, match="must be in the folder of its index"):
        read_candidates(folder)


def read_vector(loaded: LoadedModel) -> Any:
    unit = torch.nn.functional.one_hot(torch.tensor(0), loaded.hidden_size).float()
    return random_vector(
        loaded,
        "all",
        [1, 2],
        contexts=[(5, 6)],
        min_match=2,
        probes={0: (unit, 0.0), 1: (unit, 0.0), 2: (unit, 0.0)},
        centroids={0: unit[None], 1: unit[None]},
        probe_threshold={0: 0.5, 1: 0.6},
        probe_auc={0: 0.9, 1: 0.8},
        centroid_min_cosine={0: 0.3, 1: 0.4},
    )


def test_triggers_are_those_that_a_vector_has_the_data_for(loaded: LoadedModel) -> None:
    vector = read_vector(loaded)

    best = triggers_of(vector, 2, CalibrationOptions())
    everywhere = triggers_of(vector, 1, CalibrationOptions(trigger_blocks="all"))

    assert list(map(str, best)) == ["context", "probe@0", "similarity@1", "always"]
    assert list(map(str, everywhere)) == [
        "context",
        "probe@0",
        "probe@1",
        "similarity@0",
        "similarity@1",
        "always",
    ]
    bare = random_vector(loaded, "bare", [0])
    assert list(map(str, triggers_of(bare, 0, CalibrationOptions()))) == ["always"]
    assert triggers_of(bare, 0, CalibrationOptions(triggers=("context",))) == []


def test_settings_are_every_combination(loaded: LoadedModel) -> None:
    vector = read_vector(loaded)
    group = CandidateGroup("all", {"random": vector}, 1)

    settings = settings_of(group, CalibrationOptions(multiples=(2.0, 0.5)))

    assert len(settings) == len(set(map(str, settings))) == 2 * 4 * 2
    first = settings[0]
    assert (first.multiple, first.strength, first.relative) == (0.5, 0.5 * 5.0, 0.5 * 5.0 / 1.0)
    assert first.rule.layers == (1,)


def test_a_recommended_trigger_has_the_files_thresholds(loaded: LoadedModel) -> None:
    vector = read_vector(loaded)

    found = [choice.recommended(vector) for choice in triggers_of(vector, 2, CalibrationOptions())]

    assert found == [
        RecommendedTrigger(kind="context", min_match=2),
        RecommendedTrigger(kind="probe", block=0, threshold=0.5),
        RecommendedTrigger(kind="similarity", block=1, min_cosine=0.4),
        RecommendedTrigger(kind="always"),
    ]


def test_wrong_options_are_told_all_at_once() -> None:
    with pytest.raises(SearchError) as caught:
        CalibrationOptions(multiples=(0.0, 0.0), triggers=(), trigger_blocks="some", samples=0)  # type: ignore[arg-type]

    assert str(caught.value).count(";") >= 5
