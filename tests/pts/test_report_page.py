"""The page about a run, as a reader sees it in a browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from steering_engine.model import SteeredModel
from steering_pts.cli.run import RunFolder
from steering_pts.ledger import Ledger
from tests.pts.test_report import arm, setting
from tests.support.browser import Browser, Scheme, needs_chromium, running_browser
from tests.support.pts import run_pts
from tests.support.runs import HOSTILE, planted_run, settings_of
from tests.support.vectors import save_random_vector

SECTIONS = ["Overview", "Completions", "Calibration", "Evaluation", "Vectors", "Provenance"]
MOST_BYTES = 3_000_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as started:
        yield started


@pytest.fixture(scope="module")
def full(ending_folder: Path, model: SteeredModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with 500 pivots, and with everything else that a run can have, hostile texts included."""
    folder = tmp_path_factory.mktemp("full") / "run"
    run = planted_run(folder, ending_folder, 500, text=f"{HOSTILE}: ", length=140)
    save_random_vector(
        run.vectors, model.loaded, "pivot-1", [0, 1], contexts=[(5, 6, 7)], method=HOSTILE.replace("\x00", "")
    )
    (run.vectors / "broken.safetensors").write_bytes(b"nothing")
    (folder / "calibration.json").write_text(json.dumps(calibration()))
    (folder / "evaluation.json").write_text(json.dumps(evaluation()))
    return report_of(run, "--completions", "6")


def calibration() -> dict[str, Any]:
    settings = [
        setting(block, strength, 0.1 * block - 0.05 * strength, trigger=trigger, method=method)
        for method in ("optimised", HOSTILE)
        for trigger in ("context", "probe@1")
        for block in range(3)
        for strength in (0.5, 1.0, 2.0, 4.0)
    ]
    groups = [{"name": HOSTILE, "rounds": [], "settings": settings, "chosen": settings[0], "rollouts": 10}]
    return {"schema": "steering.calibration/1", "groups": groups}


def evaluation() -> dict[str, Any]:
    arms = [arm("unsteered", "unsteered", 0.6), arm(HOSTILE, "steered", 0.9), arm(HOSTILE, "flipped", 0.1)]
    arms += [arm(f"random {i}", "random", 0.5 + i / 100) for i in range(20)]
    return {
        "schema": "steering.evaluation/1",
        "problems": 100,
        "samples_per_problem": 4,
        "dataset": HOSTILE,
        "arms": arms,
        "lifts": [
            {"arm": HOSTILE, "value": 0.3, "low": 0.2, "high": 0.4, "permutation_p": 0.01, "holm_p": 0.01}
        ],
        "kl_unsteered_steps": {"mean": 0.01, "p95": 0.02},
        "by_group": {HOSTILE: {HOSTILE: {"n": 50, "unsteered": 0.5, "steered": 0.8}}},
        "random": {"vectors": 20, "mean_lift": -0.01, "low": -0.02, "high": 0.01, "permutation_p": 0.05},
        "strength_0_identical": True,
    }


def report_of(run: RunFolder, *options: str) -> Path:
    ended = run_pts("report", str(run.path), *options)
    assert ended.code == 0, ended.err
    path = run.path / "report.html"
    assert ended.out.startswith(str(path))
    assert path.stat().st_size < MOST_BYTES
    return path


def seen(browser: Browser) -> str:
    """The page's text, with what is folded up unfolded."""
    browser.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    return str(browser.evaluate("document.body.innerText"))


def check(browser: Browser, page: Path, width: int, scheme: Scheme) -> None:
    """What holds of every page: it is quiet, asks for nothing, runs nothing, and fits the window."""
    browser.open(page, width, scheme)
    assert browser.complaints == []
    assert browser.requests == [page.resolve().as_uri()]
    assert browser.evaluate("typeof window.pwned") == "undefined"
    assert browser.evaluate("document.scripts.length") == 0
    assert browser.evaluate("[...document.querySelectorAll('h2')].map(one => one.innerText)") == SECTIONS
    browser.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    # Nothing sticks out, but for what is in a strip that scrolls.
    out = browser.evaluate(
        "[...document.querySelectorAll('main *')].filter(one => !one.closest('.scroll') && !one.closest('svg') && "
        "one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 200))"
    )
    assert out == []


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_whole_page_on_a_phone_and_on_a_desk(browser: Browser, full: Path, scheme: Scheme) -> None:
    check(browser, full, 360, scheme)
    colours = browser.evaluate(
        "[document.body, document.querySelector('.chart .stroke-curve')].map(one => getComputedStyle(one))"
        ".map(style => [style.backgroundColor, style.color, style.stroke])"
    )
    page, ink = ("rgb(255, 255, 255)", "rgb(27, 31, 36)"), ("rgb(15, 19, 23)", "rgb(231, 234, 238)")
    assert tuple(colours[0][:2]) == (page if scheme == "light" else ink)
    assert colours[1][2] == ("rgb(61, 71, 82)" if scheme == "light" else "rgb(195, 203, 212)")
    shown = (
        "[...document.querySelectorAll('.chart svg')].filter(one => one.getBoundingClientRect().width > 0)"
    )
    narrow = browser.evaluate(f"{shown}.map(one => one.getAttribute('width'))")
    assert set(narrow) == {"330"}

    check(browser, full, 1000, scheme)
    wide = browser.evaluate(f"{shown}.map(one => one.getAttribute('width'))")
    assert set(wide) == {"720"}
    assert len(wide) == len(narrow) == 8  # effects, arms, and six curves


@needs_chromium
def test_what_a_reader_finds_on_the_page(browser: Browser, full: Path) -> None:
    browser.open(full, 1000, "light")

    text = seen(browser)

    assert "500\npivots\nof 500 nominated" in text
    assert "The first 6 of 250 searched completions" in text
    pivots = browser.evaluate(
        "[...document.querySelectorAll('#completion-1 mark')].map(one => [one.innerText, one.className])"
    )
    assert [words.split()[-1][-2:] for words, _ in pivots] == ["\u25b21", "\u25b22"]
    assert [kind for _, kind in pivots] == ["good", "good"]
    # What the model wrote is there to read, its control characters too, as pictures.
    written = browser.evaluate("document.querySelector('#completion-1 .text').textContent")
    assert HOSTILE.replace("\x00", "\u2400") in written
    cells = browser.evaluate("document.querySelectorAll('.heat td').length")
    assert cells == 2 * 2 * 3 * 4
    assert browser.evaluate("document.querySelectorAll('.heat .chosen').length") == 1
    assert "+0.300" in text
    assert "20 random directions" in browser.evaluate(
        "document.querySelector('#evaluation .wide').textContent"
    )
    assert "broken.safetensors: not a sound safetensors file" in text
    assert "pivot-1" in browser.evaluate("document.querySelector('#vectors').innerText")
    assert "Not calibrated" not in text


@needs_chromium
def test_a_run_with_one_pivot(browser: Browser, ending_folder: Path, tmp_path: Path) -> None:
    page = report_of(planted_run(tmp_path / "run", ending_folder, 1, bare=1))

    check(browser, page, 360, "light")

    text = seen(browser)
    assert "1\npivot\nof 1 nominated" in text
    assert "no pivot" in text
    assert "pts calibrate RUN --validation DATA" in text
    assert "pts evaluate RUN" in text
    assert "pts vectors RUN" in text
    assert browser.evaluate("document.querySelectorAll('mark').length") == 1


@needs_chromium
def test_a_run_that_has_only_begun(browser: Browser, ending_folder: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    Ledger.open(run.ledger, settings_of(ending_folder)).close()

    page = report_of(run)

    check(browser, page, 360, "dark")
    text = seen(browser)
    assert "interrupted; the command that began it goes on" in text
    assert "No pivots yet: pts discover has not sampled anything." in text
    assert "Nothing was searched yet" in text


def test_a_real_run_and_where_its_page_goes(finished_run: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "page.html"

    ended = run_pts("report", str(finished_run.path), "--out", str(out), "--completions", "1")

    assert (ended.code, ended.err) == (0, "")
    page = out.read_text(encoding="utf-8")
    assert "<script" not in page
    assert "default-src 'none'" in page.replace("&#39;", "'")
    assert not (finished_run.path / "report.html").exists()


def test_without_the_tokenizer_the_page_says_so(ending_folder: Path, tmp_path: Path) -> None:
    run = planted_run(tmp_path / "run", ending_folder, 2)
    with run.read() as ledger:
        gone = {**ledger.settings(), "model": str(tmp_path / "gone")}
    run.ledger.unlink()
    other = planted_run(tmp_path / "other", ending_folder, 2, settings=gone)

    page = report_of(other).read_text(encoding="utf-8")

    assert "Completions can't be shown as text" in page
    assert "its tokenizer can&#39;t be loaded" in page


def test_a_folder_without_a_run_is_one_clear_error(tmp_path: Path) -> None:
    assert "no run here" in run_pts("report", str(tmp_path / "nothing")).error()


def test_everything_that_is_wrong_with_a_file_of_results_is_on_the_page(
    ending_folder: Path, tmp_path: Path
) -> None:
    run = planted_run(tmp_path / "run", ending_folder, 1)
    (run.path / "evaluation.json").write_text('{"schema": "steering.evaluation/1", "problems": "many"}')

    page = report_of(run).read_text(encoding="utf-8")

    assert "⚠ evaluation.json: problems: Input should be a valid integer" in page
    assert "arms: Field required" in page
