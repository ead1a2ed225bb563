"""The metadata of vector files: every number, text and name has bounds, and is refused by name beyond them."""

from __future__ import annotations

from typing import Any

import pytest

from steering_engine.loading import LoadedModel, load_model
from steering_engine.vectors.file import encode_vector, parse_vector
from tests.support.models import save_tiny_model
from tests.support.vector_files import changed, full_vector, problems_of, set_metadata
from tests.support.vectors import random_vector


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(
        str(save_tiny_model(tmp_path_factory.mktemp("vector-metadata") / "model")), "cpu", "float32"
    )


@pytest.fixture(scope="module")
def sound(loaded: LoadedModel) -> bytes:
    return encode_vector(full_vector(loaded))


def with_lift(problems: int) -> dict[str, Any]:
    rates = {"unsteered": 0.5, "steered": 0.5, "lift": 0.0, "low95": 0.0, "high95": 0.0}
    return {"held_out_lift": {"split": "s", "problems": problems, **rates}}


class TestWholeNumbers:
    @pytest.mark.parametrize("value", [2**31, 2**63, 10**30], ids=["2^31", "2^63", "10^30"])
    @pytest.mark.parametrize("field", ["hidden_size", "block_count", "event_count"])
    def test_a_count_has_32_bits(self, field: str, value: int, sound: bytes) -> None:
        told = f"metadata {field!r}: Input should be less than or equal to {2**31 - 1}"
        assert told in problems_of(changed(sound, set_metadata(**{field: value})))

    @pytest.mark.parametrize("value", [2**31, 2**63], ids=["2^31", "2^63"])
    def test_those_of_parts_have_too(self, value: int, sound: bytes) -> None:
        def where(change: dict[str, Any]) -> list[str]:
            return [problem.split("'")[1] for problem in problems_of(changed(sound, set_metadata(**change)))]

        assert where(with_lift(value)) == ["held_out_lift.problems"]
        probe = {"kind": "probe", "block": value, "threshold": 0.5}
        assert where({"recommended_trigger": probe}) == ["recommended_trigger.block"]
        context = {"kind": "context", "min_match": value}
        assert where({"recommended_trigger": context}) == ["recommended_trigger.min_match"]
        strengths = {"0": 1.0, "2": 1.0, str(value): 1.0}
        assert where({"calibrated_strength": strengths}) == [f"calibrated_strength.{value}.[key]"]

    @pytest.mark.parametrize("value", [65, 1000, 2**31, 2**63])
    def test_no_longer_match_is_asked_for_than_a_request_may(self, value: int, sound: bytes) -> None:
        assert problems_of(changed(sound, set_metadata(context_min_match=value))) == (
            "metadata 'context_min_match': Input should be less than or equal to 64",
        )

    def test_no_longer_match_is_asked_for_than_any_context_has(self, loaded: LoadedModel) -> None:
        def file(min_match: int) -> bytes:
            return encode_vector(
                random_vector(loaded, "calm", [0], contexts=((1, 2, 3), (4,)), min_match=min_match)
            )

        assert parse_vector(file(3), "calm").metadata.context_min_match == 3
        assert problems_of(file(4)) == (
            "metadata 'context_min_match' is 4, and the longest context has 3 ids",
        )
