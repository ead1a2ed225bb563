"""`pts import --from codelion-…`: files with the known faults give correct records, and a list of what was mended."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steering_engine.model import SteeredModel
from steering_engine.vectors.file import load_vector
from steering_pts.cli.run import RunFolder
from steering_pts.data import DataOptions
from steering_pts.errors import DataError
from steering_pts.interop.codelion.fields import OwnIds
from steering_pts.interop.codelion.reading import read_pairs, read_pivots, read_vectors
from steering_pts.interop.mending import Mending
from steering_pts.ledger.export import read_pivots as read_our_pivots
from tests.support.pts import run_pts

CONTEXT = "[user]Q?[end][assistant]So it is"
PIVOT = {
    "model_id": "tiny",
    "query": "Q?",
    "pivot_context": CONTEXT,
    "pivot_token": "4",
    "prob_before": 0.25,
    "prob_after": 0.75,
    "prob_delta": 0.5,
    "is_positive": True,
    "task_type": "math",
    "rejected_token": "5",
}
PAIR = {
    "prompt": CONTEXT,
    "chosen": "4",
    "rejected": "5",
    "metadata": {"original_query": "Q?", "prob_delta": 0.5, "task_type": "math"},
}


def write(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


def pivot(**changes: Any) -> dict[str, Any]:
    """A sound row with some fields changed; None takes a field away."""
    return {name: value for name, value in {**PIVOT, **changes}.items() if value is not None}


def imported(tmp_path: Path, model: Path, rows: Sequence[Any], layout: str, *options: str) -> tuple[Any, Any]:
    """What the command says of a file with these rows, and the pivots that it wrote."""
    file = write(tmp_path / "rows.jsonl", rows)
    run = tmp_path / "run"
    ended = run_pts(
        "import", file, "--from", layout, "--model", str(model), "--out", str(run), "--json", *options
    )
    assert (ended.code, ended.err) == (0, "")
    return json.loads(ended.out), read_our_pivots(run / "pivots.jsonl")


def exported(run: Path, layout: str, version: str) -> list[dict[str, Any]]:
    ended = run_pts("export", str(run), "--to", layout, "--codelion-version", version, "--format", "jsonl")
    assert (ended.code, ended.err) == (0, "")
    return [json.loads(line) for line in ended.out.splitlines()]


def ids(text: str, model: SteeredModel) -> list[int]:
    found: list[int] = model.loaded.tokenizer(text)["input_ids"]
    return found


# --- pivots -----------------------------------------------------------------------------------------------------------


def test_a_sound_row_becomes_an_unverified_pivot(
    tmp_path: Path, ending_folder: Path, model: SteeredModel
) -> None:
    said, (found,) = imported(tmp_path, ending_folder, [pivot(model_id=None)], "codelion-pts")

    assert said["mended"] == ["model_id missing: row 1"]
    assert found["prompt_ids"] == ids("[user]Q?[end][assistant]", model)
    assert found["prefix_ids"] == ids("So it is", model)
    assert (found["chosen_ids"], found["rejected_ids"]) == (ids("4", model), ids("5", model))
    assert found["delta"] == 0.5
    assert (found["p_value"], found["q_value"], found["low"], found["high"]) == (1.0, 1.0, -1.0, 1.0)
    assert found["confirmation"] is None


def test_what_is_known_to_be_wrong_with_such_files_is_mended_and_told(
    tmp_path: Path, ending_folder: Path, model: SteeredModel
) -> None:
    rows = [
        pivot(),
        pivot(prob_before=0.1, prob_after=0.6),  # the same again
        pivot(pivot_token="6", is_positive=False),
        pivot(pivot_token="7", prob_delta=-0.5, prob_after=0.25, prob_before=0.75, is_positive=None),
        pivot(pivot_token="8", prob_delta=None, schema_version="1.0"),
        pivot(pivot_token="9", schema_version="2.0", pivot_token_id=7, event_id="e", extra=[1]),
        pivot(pivot_token="1", task_type=None, query=None, rejected_token=None),
    ]

    said, found = imported(tmp_path, ending_folder, rows, "codelion-pts")

    by_token = {one["token"]: one for one in found}
    assert {token: one["delta"] for token, one in by_token.items()} == {
        "4": 0.5,
        "6": 0.5,
        "7": -0.5,
        "8": 0.5,
        "9": 0.5,
        "1": 0.5,
    }
    assert by_token["7"]["rejected"] == "7", "a harmful token is the worse of its pair"
    assert by_token["9"]["token_id"] == ids("9", model)[0]
    assert said["mended"] == [
        "left out, because it repeats an earlier one: row 2",
        "is_positive contradicted prob_delta; it is its sign: row 3",
        "is_positive was missing; it is the sign of prob_delta: row 4",
        "prob_delta was missing; it is prob_after - prob_before: row 5",
        "query and task_type missing: row 7",
        f"its rows are of model 'tiny'; they are read as those of {str(ending_folder)!r}: row 1",
        "the token's id did not say its text; the id is that of the text: row 6",
        "no other token was given; the model's most probable one stands in, unverified: row 7",
        "the context does not begin with the question; all of it counts as the prompt: row 7",
    ]


def test_of_rows_that_contradict_each_other_the_first_stands_and_the_others_are_named(tmp_path: Path) -> None:
    worse = {"prob_delta": -0.3, "prob_before": None, "prob_after": None, "is_positive": False}
    rows = [
        pivot(),
        pivot(**worse),  # the same token, to the other side
        pivot(pivot_token="5", rejected_token="4"),  # the other token, better than this one
        pivot(pivot_token="5", rejected_token="4", **worse),  # agrees with the first, about another token
        pivot(pivot_context=CONTEXT + "n't", **worse),
        pivot(pivot_context=CONTEXT + "n't"),
    ]
    mending = Mending()

    found = read_pivots(write(tmp_path / "rows.jsonl", rows), DataOptions(), mending)

    assert [one.number for one in found] == [1, 4, 5]
    assert mending.sentences() == (
        "left out, because it contradicts row 1, which stands: 2 rows (2, 3)",
        "left out, because it contradicts row 5, which stands: row 6",
    )


def test_vectors_that_contradict_each_other_are_not_both_taken(tmp_path: Path) -> None:
    rows = [vector_row(basis(0)), vector_row(basis(0), prob_delta=-0.5), vector_row(basis(0))]
    mending = Mending()

    found = read_vectors(write(tmp_path / "rows.jsonl", rows), DataOptions(), mending)

    assert [one.number for one in found] == [1]
    assert mending.sentences()[-2:] == (
        "left out, because it contradicts row 1, which stands: row 2",
        "left out, because it repeats an earlier one: row 3",
    )


@pytest.mark.parametrize(
    "metadata", ["oops", "[1, 2]", [1, 2], 7, True, {"prompt_ids": "x"}, {"chosen_ids": [-1]}]
)
def test_what_other_programs_keep_under_metadata_is_none_of_ours(tmp_path: Path, metadata: Any) -> None:
    rows = [pivot(metadata=metadata)]

    (found,) = read_pivots(write(tmp_path / "rows.jsonl", rows), DataOptions(), Mending())

    assert found.own == OwnIds()


def test_a_missing_counterpart_is_the_models_most_probable_other_token(
    tmp_path: Path, ending_folder: Path, model: SteeredModel
) -> None:
    with torch.no_grad():
        context = torch.tensor([ids(CONTEXT, model)])
        best, second = model.loaded.model(context).logits[0, -1].topk(2).indices.tolist()
    token = model.loaded.tokenizer.decode([best])

    _, (found,) = imported(
        tmp_path,
        ending_folder,
        [pivot(pivot_token=token, pivot_token_id=best, rejected_token=None)],
        "codelion-pts",
    )

    assert (found["chosen_ids"], found["rejected_ids"]) == ([best], [second])


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"pivot_context": None}, "pivot_context: is missing"),
        ({"pivot_token": ""}, "pivot_token: is missing"),
        ({"prob_delta": 1.5}, "prob_delta: input should be less than or equal to 1 (it is 1.5)"),
        ({"prob_delta": 0.0}, "prob_delta is 0; a pivotal token changes the probability of success"),
        ({"prob_delta": None, "prob_after": None}, "it has no prob_delta, and not both"),
        ({"schema_version": "3.0"}, "schema_version: input should be '1.0' or '2.0'"),
        ({"query": "half \ud800"}, "query: input should be a valid string"),
        ({"rejected_token": "\ud800"}, "rejected_token: input should be a valid string"),
    ],
)
def test_a_row_that_can_not_be_used_stops_the_import_and_is_named(
    tmp_path: Path, changes: dict[str, Any], fault: str
) -> None:
    file = write(
        tmp_path / "rows.jsonl", [pivot(), pivot(**{"pivot_token": "5", "rejected_token": "4", **changes})]
    )

    ended = run_pts(
        "import", file, "--from", "codelion-pts", "--model", "demo", "--out", str(tmp_path / "run")
    )

    assert f"rows.jsonl: line 2: {fault}" in ended.error()
    assert not (tmp_path / "run").exists()


def test_what_no_token_stands_for_is_refused_or_skipped(tmp_path: Path, ending_folder: Path) -> None:
    rows = [pivot(), pivot(pivot_token="four"), pivot(pivot_context="a\ufffdb\ufffd")]
    file = write(tmp_path / "rows.jsonl", rows)
    command = ("import", file, "--from", "codelion-pts", "--model", str(ending_folder))

    ended = run_pts(*command, "--out", str(tmp_path / "refused"))

    assert ended.code == 2
    assert "'four' is not one token of this model after its context" in ended.err
    said, found = imported(tmp_path, ending_folder, rows, "codelion-pts", "--skip-bad-rows")
    assert [one["token"] for one in found] == ["4", "4"]
    assert "left out: 'four' is not one token of this model after its context: row 2" in said["mended"]


def test_rows_of_several_models_are_not_mixed(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [pivot(), pivot(model_id="other")])

    ended = run_pts("import", file, "--from", "codelion-pts", "--out", str(tmp_path / "run"))

    assert "its rows are of 2 models (other, tiny); keep those of one" in ended.error()


def test_an_import_that_was_interrupted_is_finished_by_the_same_command(
    tmp_path: Path, ending_folder: Path
) -> None:
    said, found = imported(tmp_path, ending_folder, [pivot()], "codelion-pts")
    (tmp_path / "run" / "pivots.jsonl").unlink()

    assert imported(tmp_path, ending_folder, [pivot()], "codelion-pts") == (said, found)


def test_what_works_on_a_run_works_on_an_imported_one(tmp_path: Path, ending_folder: Path) -> None:
    rows = [pivot(pivot_context=CONTEXT.replace("Q", str(n)), query=f"{n}?") for n in range(4)]
    imported(tmp_path, ending_folder, rows, "codelion-pts")
    run = str(tmp_path / "run")

    for command in (
        ["status"],
        ["show", "--full"],
        ["export", "--to", "trl-dpo"],
        ["export", "--what", "candidates"],
    ):
        ended = run_pts(command[0], run, *command[1:])
        assert (ended.code, ended.err) == (0, ""), command
    ended = run_pts("vectors", run, "--json")
    assert ended.code == 0, ended.err
    assert len(list(tmp_path.glob("run/**/*.safetensors"))) >= 2  # vectors and recorded states


def test_what_a_file_tells_of_success_goes_out_as_it_came(tmp_path: Path, ending_folder: Path) -> None:
    """Also from one version into the other: nothing of it is ours to drop, or to vouch for."""
    rows = [
        pivot(),
        pivot(pivot_token="6", prob_before=0.75, prob_after=0.25, prob_delta=-0.5, is_positive=False),
        pivot(pivot_token="7", prob_before=None, prob_after=None),
    ]
    imported(tmp_path, ending_folder, rows, "codelion-pts")

    for version in ("1", "2"):
        found = {row["pivot_token"]: row for row in exported(tmp_path / "run", "codelion-pts", version)}
        for row in rows:
            told = found[row["pivot_token"]]
            for name in ("query", "pivot_context", "prob_delta", "is_positive", "task_type"):
                assert told[name] == row[name]
            for name in ("prob_before", "prob_after"):
                assert told[name] == row.get(name)


def test_what_a_file_tells_of_pairs_goes_out_unverified(tmp_path: Path, ending_folder: Path) -> None:
    rates = {"prob_chosen": 0.9, "prob_rejected": 0.4}
    about = {"original_query": "Q?", "task_type": "math", **rates}
    rows = [
        {**PAIR, "metadata": {**about, "prob_delta": 0.5}},
        {**PAIR, "chosen": "6", "metadata": {**about, "prob_delta": -0.5}},  # of the one that was rejected
    ]
    imported(tmp_path, ending_folder, rows, "codelion-dpo")

    found = exported(tmp_path / "run", "codelion-dpo", "2")

    assert sorted(row["chosen"] for row in found) == ["4", "6"]
    for row in found:
        told = row["metadata"]
        assert {name: told[name] for name in rates} == rates
        assert (told["task_type"], told["counterpart_verified"]) == ("math", False)


# --- our own exports come back ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["codelion-pts", "codelion-dpo"])
@pytest.mark.parametrize(("version", "format"), [("1", "jsonl"), ("1", "csv"), ("2", "parquet")])
def test_an_export_comes_back_with_the_exact_ids(
    finished_run: RunFolder, ending_folder: Path, tmp_path: Path, layout: str, version: str, format: str
) -> None:
    file = str(tmp_path / f"rows.{format}")
    run_pts("export", str(finished_run.path), "--to", layout, "--codelion-version", version, "--out", file)

    ended = run_pts(
        "import",
        file,
        "--from",
        layout,
        "--model",
        str(ending_folder),
        "--out",
        str(tmp_path / "run"),
        "--json",
    )

    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["mended"] == []

    def decisions(path: Path) -> set[str]:
        names = ("prompt_ids", "prefix_ids", "ids", "chosen_ids", "rejected_ids", "delta", "probability")
        return {str([one[name] for name in names]) for one in read_our_pivots(path)}

    assert decisions(tmp_path / "run" / "pivots.jsonl") == decisions(finished_run.pivots)


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_pairs_of_both_versions_become_pivots(tmp_path: Path, ending_folder: Path) -> None:
    about = {"prob_chosen": 0.9, "prob_rejected": 0.4, "event_id": "e", "counterpart_verified": True}
    rows = [
        PAIR,
        {**PAIR, "chosen": "6", "metadata": {"original_query": "Q?", "prob_delta": -0.25}},
        {**PAIR, "chosen": "7", "metadata": about},
    ]

    said, found = imported(tmp_path, ending_folder, rows, "codelion-dpo")

    assert {(one["token"], one["chosen"], one["rejected"], one["delta"]) for one in found} == {
        ("7", "7", "5", 0.5),
        ("4", "4", "5", 0.5),
        ("5", "6", "5", -0.25),
    }
    assert "prob_delta was missing; it is prob_chosen - prob_rejected: row 3" in said["mended"]


# --- vectors ----------------------------------------------------------------------------------------------------------


def vector_row(values: Sequence[float], **changes: Any) -> dict[str, Any]:
    return {
        "pivot_context": CONTEXT,
        "steering_vector": list(values),
        "reasoning_pattern": "self_correction",
        "prob_delta": 0.5,
        "steering_layer": 1,
        **changes,
    }


def basis(index: int, length: float = 1.0) -> list[float]:
    return [length if place == index else 0.0 for place in range(32)]


def test_rows_of_a_cluster_become_one_vector_of_which_harmful_ones_are_subtracted(
    tmp_path: Path, ending_folder: Path, model: SteeredModel
) -> None:
    rows = [
        vector_row(basis(0, 4.0), cluster_id=0),
        vector_row(basis(1, 4.0), cluster_id=0, prob_delta=-0.5, pivot_context=CONTEXT + "n't"),
        vector_row([], steering_vector=json.dumps(basis(2)), cluster_id=1, reasoning_pattern="exploration"),
    ]
    file = write(tmp_path / "rows.jsonl", rows)
    out = tmp_path / "vectors"

    ended = run_pts(
        *("import", file, "--from", "codelion-vectors", "--model", str(ending_folder), "--out", str(out)),
        "--json",
    )

    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["mended"] == ["subtracted, because its token is a harmful one: row 2"]
    vector = load_vector(out / "self-correction-0-block-1.safetensors")
    expected = torch.tensor(basis(0, 2.0)) - torch.tensor(basis(1, 2.0))
    strength = vector.metadata.calibrated_strength[1]
    assert torch.allclose(strength * vector.directions[1], expected)
    assert set(vector.contexts) == {tuple(ids(CONTEXT, model)), tuple(ids(CONTEXT + "n't", model))}
    assert vector.metadata.context_min_match == 4
    assert load_vector(out / "exploration-1-block-1.safetensors").metadata.event_count == 1


def test_vectors_that_do_not_fit_the_model_are_all_named(tmp_path: Path, ending_folder: Path) -> None:
    rows = [vector_row(basis(0)), vector_row([1.0, 2.0]), vector_row(basis(0), steering_layer=3)]
    file = write(tmp_path / "rows.jsonl", rows)

    ended = run_pts(
        *(
            "import",
            file,
            "--from",
            "codelion-vectors",
            "--model",
            str(ending_folder),
            "--out",
            str(tmp_path / "v"),
        )
    )

    assert ended.code == 2
    assert "row 2: a vector of 2 numbers; the model's residual stream has width 32" in ended.err
    assert "row 3: steering_layer 3; the model has blocks 0 to 2" in ended.err


# --- whatever a file holds --------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
rows_of_any_kind = st.lists(
    st.builds(
        lambda known, changes: {**known, **changes},
        st.sampled_from([PIVOT, PAIR, vector_row([1.0])]),
        st.dictionaries(st.sampled_from([*PIVOT, *PAIR, *vector_row([])]), json_values, max_size=3),
    )
    | json_values,
    max_size=3,
)


@given(rows_of_any_kind)
def test_any_rows_are_read_or_refused_with_the_reason(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any]
) -> None:
    file = write(tmp_path_factory.getbasetemp() / "any.jsonl", rows)
    for read in (read_pivots, read_pairs, read_vectors):
        problems: tuple[str, ...] = ()
        found: Sequence[Any] = ()
        try:
            found = read(file, DataOptions(), Mending())
        except DataError as error:
            problems = error.problems
        assert (len(found) > 0) != (len(problems) > 0)
        assert len(found) <= len(rows)
