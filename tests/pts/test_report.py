"""What the page about a run is made of: curves, texts, charts, heat maps, files of results."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering_pts.cli.run import RunFolder, tokenizer_of
from steering_pts.data import Problem
from steering_pts.errors import ReportError
from steering_pts.ledger import CompletionRecord, Ledger, RolloutKey, RolloutRecord, ScoreRecord
from steering_pts.oracles.base import Verdict
from steering_pts.report.charts import ArmRow, arms_chart
from steering_pts.report.completions import kept_ranges
from steering_pts.report.curves import RunCurves
from steering_pts.report.curves_chart import CurveMark, curve_chart, thinned
from steering_pts.report.heat import heat_maps
from steering_pts.report.measured import shown_evaluation
from steering_pts.report.palette import DARK, LIGHT, STAND_INS, heat_bin
from steering_pts.report.results import CalibratedGroup, Calibration, Evaluation, read_result
from steering_pts.report.texts import clean, label, pieces, shown_token
from steering_pts.search.chain import Curve
from tests.support.models import byte_tokenizer
from tests.support.pts import run_pts
from tests.support.runs import VALUES, planted_run, settings_of

# --- curves -----------------------------------------------------------------------------------------------------------


def test_a_curve_is_that_of_the_planted_values(ending_folder: Path, tmp_path: Path) -> None:
    run = planted_run(tmp_path / "run", ending_folder, 4)
    with run.read() as ledger:
        curves = RunCurves(ledger, tokenizer_of(ledger, skip_special_tokens=True))

        helped, harmed = (curves.curve(completion) for completion in curves.searched)

    for curve, expected in ((helped, VALUES), (harmed, tuple(1 - value for value in VALUES))):
        assert curve.positions == (0, 6, 7, 25, 26, 60)
        at = [curve.mean[index] for index in (1, 3, 5)]
        # The posterior leans towards small steps, so it lies near what twenty rollouts say, not on it.
        assert at == pytest.approx(expected, abs=0.06)
        for index, value in zip((1, 3, 5), expected, strict=True):
            assert curve.low[index] - 0.02 <= value <= curve.high[index] + 0.02
    assert helped.high[1] - helped.low[1] < 0.35
    np.testing.assert_allclose(harmed.mean, 1 - helped.mean, atol=1e-9)


def test_a_curve_of_a_real_run_ends_with_the_verdict(finished_run: RunFolder) -> None:
    with finished_run.read() as ledger:
        curves = RunCurves(ledger, tokenizer_of(ledger, skip_special_tokens=True))
        assert curves.searched
        for completion in curves.searched:
            curve = curves.curve(completion)
            assert curve.positions[0] == 0
            assert curve.positions[-1] == len(completion.ids)
            end = float(completion.verdict == "correct")
            assert (curve.low[-1], curve.mean[-1], curve.high[-1]) == (end, end, end)
            assert (curve.low <= curve.high).all()


def test_rollouts_count_for_every_completion_that_they_leave_as_the_sampler_would(
    ending_folder: Path, tmp_path: Path
) -> None:
    first, second = (10, 11, 12, 15), (10, 11, 13, 15)
    settings = {**settings_of(ending_folder), "search.completions_per_problem": 2}
    rollouts = {
        (0, "alternative", 0): (20, 21),  # leaves both at 0
        (0, "on_path", 0): (10, 30),  # leaves both at 1
        (2, "alternative", 0): (14, 41),  # at 2 only 12 was excluded, not the other one's 13
        (2, "alternative", 1): (13, 16),  # goes on as the other one, and leaves it at 3
    }
    with Ledger.open(tmp_path / "ledger.sqlite", settings) as ledger:
        ledger.add_problems([Problem("p", "?", "1")])
        ledger.add_completions(
            [
                CompletionRecord(name, "p", index, index, (5,), ids, verdict, None, "eos")
                for index, (name, ids, verdict) in enumerate(
                    [("a", first, Verdict.CORRECT), ("b", second, Verdict.INCORRECT)]
                )
            ]
        )
        ledger.add_scores([ScoreRecord(name, (0.5,) * 4) for name in "ab"])
        ledger.add_rollouts(
            [
                RolloutRecord(
                    RolloutKey("a", position, arm, "explore", index), 0, ids, Verdict.CORRECT, None, 1
                )
                for (position, arm, index), ids in rollouts.items()
            ]
        )
        curves = RunCurves(ledger, str)

        drawn = [curves._explored(completion).chain.draws.tolist() for completion in curves.searched]

    # Successes, failures, censored at each token; each completion is itself a draw that leaves the other one at 2.
    assert drawn == [
        [[1, 0, 0], [1, 0, 0], [2, 1, 0], [0, 0, 0]],
        [[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]],
    ]


@given(st.integers(2, 3000), st.data())
def test_a_thinned_curve_keeps_its_ends_and_every_pivot(count: int, data: st.DataObject) -> None:
    places = data.draw(st.sets(st.integers(0, count - 2), max_size=5))
    values = np.zeros(count)
    curve = Curve(tuple(range(count)), values, values, values)

    kept = thinned(curve, [CurveMark(1, place, place + 1, good=True) for place in places])

    assert kept == sorted(set(kept))
    assert {0, count - 1} <= set(kept)
    assert {end for place in places for end in (place, place + 1)} <= set(kept)
    assert len(kept) <= 250


# --- texts ------------------------------------------------------------------------------------------------------------

TOKENIZER = byte_tokenizer()


@given(st.text(max_size=40), st.data())
def test_pieces_are_the_whole_text_cut_between_characters(text: str, data: st.DataObject) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    cuts = sorted(data.draw(st.sets(st.integers(0, len(ids)))))

    found = pieces(ids, cuts, lambda some: str(TOKENIZER.decode(list(some))))

    assert len(found) == len(cuts) + 1
    assert "".join(found) == text
    if not text.endswith("\ufffd") and "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in found)


@given(st.text())
def test_what_is_shown_can_stand_in_html_and_xml(text: str) -> None:
    for shown in (clean(text), label(text), shown_token(text)):
        shown.encode()
        ET.fromstring(f"<a>{shown.replace('&', '').replace('<', '')}</a>")  # noqa: S314 -- no entities
    assert "\n" not in label(text)
    assert len(label(text)) <= 40


@given(st.integers(1, 5000), st.lists(st.integers(0, 4900), max_size=4))
def test_of_a_long_completion_the_surroundings_of_pivots_are_kept(length: int, places: list[int]) -> None:
    spans = [(place, place + 1) for place in sorted(set(places)) if place < length]

    kept = kept_ranges(length, spans)

    assert all(start < end for start, end in kept)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(kept))
    assert kept[0][0] == 0
    assert kept[-1][1] == length
    assert all(any(low <= start and end <= high for low, high in kept) for start, end in spans)
    if length > 900:
        assert sum(end - start for start, end in kept) <= 160 + 81 * len(spans)


# --- charts -----------------------------------------------------------------------------------------------------------


def test_a_chart_has_no_style_of_its_own_and_names_of_its_own() -> None:
    values = np.linspace(0.2, 1, 5)
    curve = Curve(tuple(range(5)), values, values - 0.1, np.minimum(values + 0.1, 1))

    drawn = [str(curve_chart(name, curve, [CurveMark(1, 1, 2, good=True)])) for name in ("a", "b")]

    assert "style" not in drawn[0]
    assert not any(colour in drawn[0] for colour in STAND_INS.values())
    names = [re.findall(r'id="([^"]+)"', chart) for chart in drawn]
    assert len(names[0]) == len(set(names[0]))
    assert not set(names[0]) & set(names[1])
    assert set(re.findall(r'(?:href="|url\()#([\w-]+)', drawn[0])) <= set(names[0])
    assert drawn[0] == str(curve_chart("a", curve, [CurveMark(1, 1, 2, good=True)]))


def test_names_of_arms_are_only_text_in_a_chart() -> None:
    hostile = "$\\frac{1}$ <b>&\u202e\x00 日本"

    drawn = str(arms_chart([ArmRow(hostile, 0.5, 0.4, 0.6)], 0.5))

    root = ET.fromstring(drawn)  # noqa: S314 -- our own
    assert "<b>" not in drawn
    assert any("$\\frac{1}$ <b>&" in (element.text or "") for element in root.iter("text"))


def test_inks_can_be_read_on_what_they_stand_on() -> None:
    for scheme in (LIGHT, DARK):
        for paper in ("page", "panel"):
            for ink in ("ink", "muted", "good", "bad", "curve"):
                assert _contrast(scheme[ink], scheme[paper]) >= 4.5, (ink, paper)
        for paper in [f"heat{number}" for number in range(9)] + ["good-soft", "bad-soft"]:
            assert _contrast(scheme["ink"], scheme[paper]) >= 4.5, paper
        for side in ("good", "bad"):
            assert _contrast(scheme[side], scheme[f"{side}-soft"]) >= 4.5, side


def _contrast(first: str, second: str) -> float:
    """WCAG 2's contrast of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(first), luminance(second)))
    return (lighter + 0.05) / (darker + 0.05)


# --- calibration and evaluation ---------------------------------------------------------------------------------------


def setting(block: int, strength: float, lift: float, **more: Any) -> dict[str, Any]:
    return {
        "method": "optimised",
        "block": block,
        "strength": strength,
        "trigger": "context",
        "problems": 32,
        "solved": 20,
        "lift": lift,
        "kl": 0.01,
        "kept": False,
        **more,
    }


def group(*settings: dict[str, Any], **more: Any) -> CalibratedGroup:
    return CalibratedGroup.model_validate({"name": "g", "rounds": [], "settings": settings, **more})


def test_a_heat_map_has_a_row_for_each_block_and_a_column_for_each_strength() -> None:
    found = heat_maps(
        group(
            setting(0, 1.0, -0.2),
            setting(2, 1.0, 0.1),
            setting(2, 2.0, 0.2, problems=64),
            chosen=setting(2, 2.0, 0.2),
        )
    )

    (only,) = found.maps
    assert (only.method, only.trigger, only.columns) == ("optimised", "context", ("\u00d71", "\u00d72"))
    cells = {
        (block, column): cell and (cell.setting.lift, cell.bin, cell.is_chosen)
        for block, row in only.rows
        for column, cell in enumerate(row)
    }
    assert cells == {(0, 0): (-0.2, 0, False), (0, 1): None, (2, 0): (0.1, 6, False), (2, 1): (0.2, 8, True)}


def test_probes_read_at_one_block_for_each_steered_one_share_a_heat_map() -> None:
    one_each = [{**setting(b, 1.0, 0.1), "trigger": f"probe@{read}"} for b, read in ((1, 0), (2, 2))]
    found = heat_maps(group(setting(1, 1.0, 0.3), *one_each))
    assert [(one.trigger, [block for block, _ in one.rows]) for one in found.maps] == [
        ("context", [1]),
        ("probe", [1, 2]),
    ]

    several = {**setting(2, 1.0, 0.2), "trigger": "probe@0"}
    found = heat_maps(group(*one_each, several))
    assert [(one.trigger, [block for block, _ in one.rows]) for one in found.maps] == [
        ("probe at block 0", [1, 2]),
        ("probe at block 2", [2]),
    ]


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0.01, 1e4)), min_size=1, max_size=40))
def test_no_setting_is_missing_from_a_heat_map(tried: list[tuple[int, float]]) -> None:
    found = heat_maps(group(*(setting(block, strength, 0.1) for block, strength in tried)))

    (only,) = found.maps
    assert len(only.columns) <= 8
    assert [block for block, _ in only.rows] == sorted({block for block, _ in tried})
    shown = {block: sum(cell is not None for cell in cells) for block, cells in only.rows}
    for block, count in shown.items():
        strengths = {strength for own, strength in tried if own == block}
        assert 1 <= count <= len(strengths)


@pytest.mark.parametrize(
    ("value", "expected"), [(-1.0, 0), (-0.2, 0), (0.0, 4), (0.1, 6), (0.2, 8), (9.0, 8)]
)
def test_colours_of_a_heat_map_go_from_the_worst_over_none_to_the_best(value: float, expected: int) -> None:
    assert heat_bin(value, 0.2) == expected


def arm(name: str, kind: str, success: float) -> dict[str, Any]:
    return {"name": name, "kind": kind, "n": 100, "success": success, "low": success, "high": success}


def test_random_arms_are_one_row_and_the_steered_arm_is_the_main_one() -> None:
    arms = [arm("unsteered", "unsteered", 0.6), arm("all", "steered", 0.9)]
    arms += [arm(f"random {i}", "random", 0.5 + i / 100) for i in range(20)]
    evaluation = Evaluation.model_validate(
        {
            "schema": "steering.evaluation/1",
            "problems": 100,
            "arms": arms,
            "lifts": [{"arm": "all", "value": 0.3, "low": 0.2, "high": 0.4}],
        }
    )

    shown = shown_evaluation(evaluation)

    assert [one.title for one in shown.arms] == ["unsteered", "steered at pivots"]
    assert shown.main is shown.arms[1]
    assert shown.main.lift is not None
    assert shown.main.lift.value == 0.3
    assert (len(shown.random_arms), shown.more_random) == (20, 0)
    assert "20 random directions 0.595 (0.500 to 0.690)" in str(shown.chart)


def test_a_file_of_results_is_refused_with_everything_that_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({"schema": "other/1", "groups": [{"settings": [{"method": 3}]}]}))

    with pytest.raises(ReportError) as caught:
        read_result(path, Calibration)

    found = {problem.split(":")[0] for problem in caught.value.problems}
    assert {"schema", "groups.0.name", "groups.0.settings.0.method", "groups.0.settings.0.block"} <= found
    assert str(caught.value).startswith(f"{path}: ")
    assert read_result(tmp_path / "none.json", Calibration) is None
    path.write_bytes(b"{")
    with pytest.raises(ReportError, match="the file: Invalid JSON"):
        read_result(path, Calibration)


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("evaluation.json", '{"schema": "other/1"}', "evaluation.json: schema: Input should be"),
        ("calibration.json", "no JSON <b>", "calibration.json: the file: Invalid JSON"),
        ("calibration.json", None, "calibration.json: can&#39;t be read: Is a directory"),
    ],
)
def test_a_broken_file_of_results_is_told_in_its_place_and_the_rest_is_shown(
    ending_folder: Path, tmp_path: Path, name: str, content: str | None, fault: str
) -> None:
    run = planted_run(tmp_path / "run", ending_folder, 4)
    if content is None:
        (run.path / name).mkdir()
    else:
        (run.path / name).write_text(content, encoding="utf-8")

    ended = run_pts("report", str(run.path))

    assert (ended.code, ended.err) == (0, "")
    sections = (run.path / "report.html").read_text(encoding="utf-8").split("<section ")[1:]
    (told,) = (section for section in sections if fault in section)
    assert told.startswith(f'id="{name.removesuffix(".json")}"')
    (other,) = {"calibration", "evaluation"} - {name.removesuffix(".json")}
    assert any(f'id="{other}"' in section and "⚠" not in section for section in sections)
    assert any('id="completions"' in section and "<mark" in section for section in sections)
    assert str(run.path.parent) not in told
