"""The metadata of vector files: every number, text and name has bounds, and is refused by name beyond them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from steering_engine.loading import LoadedModel
from steering_engine.vectors.file import encode_vector, parse_vector
from steering_engine.vectors.header import MAX_METADATA_BYTES
from steering_engine.vectors.schema import MAX_METADATA_ENTRIES
from tests.support.vector_files import Change, changed, metadata_size, problems_of, set_metadata
from tests.support.vectors import random_vector


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

    @pytest.mark.parametrize("value", [2**64, -(2**63) - 1, 10**30])
    def test_a_setting_has_64_bits(self, value: int, sound: bytes) -> None:
        assert problems_of(changed(sound, set_metadata(discovery_settings={"seed": value}))) == (
            "metadata 'discovery_settings.seed': Value error, a whole number has at most 64 bits",
        )


class TestSizes:
    def test_all_metadata_together_have_a_limit(self, sound: bytes) -> None:
        empty = metadata_size(changed(sound, set_metadata(licence="")))

        def file(size: int) -> bytes:
            return changed(sound, set_metadata(licence="x" * (size - empty)))

        assert parse_vector(file(MAX_METADATA_BYTES), "calm").metadata_bytes == MAX_METADATA_BYTES
        assert problems_of(file(MAX_METADATA_BYTES + 1)) == (
            f"its metadata have {MAX_METADATA_BYTES + 1} bytes; at most {MAX_METADATA_BYTES} are kept",
        )

    def test_a_field_has_so_many_entries_and_one_more_is_not_even_looked_at(self, sound: bytes) -> None:
        many: dict[str, object] = {str(number): [] for number in range(MAX_METADATA_ENTRIES + 1)}
        told = f"{MAX_METADATA_ENTRIES + 1} entries; at most {MAX_METADATA_ENTRIES} are allowed"
        for field in ("discovery_settings", "calibrated_strength", "held_out_lift"):
            assert problems_of(changed(sound, set_metadata(**{field: many}))) == (
                f"metadata {field!r}: {told}",
            )
        (problem,) = problems_of(changed(sound, set_metadata(**many)))
        assert problem.startswith("metadata: ")
        numbers = {str(number): number for number in range(MAX_METADATA_ENTRIES)}
        read = parse_vector(changed(sound, set_metadata(discovery_settings=numbers)), "calm")
        assert read.metadata.discovery_settings == numbers


def set_text(field: str, text: str) -> Change:
    """Sets a field to a text that need not be what `json` writes."""
    return lambda _, metadata: metadata.update({field: text})


class TestTexts:
    @pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e400"])
    def test_a_setting_that_json_can_not_tell(self, text: str, sound: bytes) -> None:
        assert problems_of(changed(sound, set_text("discovery_settings", f'{{"a": {text}}}'))) == (
            "metadata 'discovery_settings.a': Value error, Input should be a finite number",
        )

    @pytest.mark.parametrize("key", [" 2 ", "+2", "02", "2.0", "2_0", "\u0662", ""])
    def test_a_block_is_written_in_one_way(self, key: str, sound: bytes) -> None:
        strengths = json.dumps({"0": 1.0, "2": 1.0, key: 3.0})
        told = (
            f"metadata {f'calibrated_strength.{key}.[key]'!r}: Value error, a block is written as 0, 1, 2 and so on, "
            "with digits alone"
        )
        assert problems_of(changed(sound, set_text("calibrated_strength", strengths))) == (told,)

    def test_a_name_comes_once(self, sound: bytes) -> None:
        assert problems_of(changed(sound, set_text("calibrated_strength", '{"0": 1, "2": 1, "2": 3}'))) == (
            "metadata 'calibrated_strength' has '2' more than once",
        )

    def test_a_name_of_half_a_character_can_be_told(self, sound: bytes) -> None:
        for problem in problems_of(changed(sound, set_text("held_out_lift", '{"\\ud800": 1}'))):
            problem.encode()
