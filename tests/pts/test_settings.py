from __future__ import annotations

import json
import math
from typing import Any

import pytest

from steering_pts.errors import SearchError
from steering_pts.settings import SamplerSettings, SearchSettings, as_json


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.0),
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("min_p", math.nan),
        ("top_k", -1),
        ("max_tokens", 0),
    ],
)
def test_a_sampler_that_cannot_be_is_refused_by_name_and_value(name: str, value: float) -> None:
    with pytest.raises(SearchError, match=f"^{name} is {value}; expected"):
        SamplerSettings(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tau", 0.0),
        ("tau", 1.0),
        ("tau", math.nan),
        ("delta0", -0.1),
        ("delta0", 0.2),  # the default tau
        ("delta0", math.nan),
        ("fdr", 0.0),
        ("fdr", 1.0),
        ("ambiguity", 0.0),
        ("nominate", 1.0),
        ("base_rollouts", 0),
        ("completions_per_problem", 0),
        ("ambiguity", 0.5),
        ("rho", 0.0),
        ("sd", 1.0),
        ("power", 1.0),
        ("explore_share", 0.0),
        ("prior_weight", -1.0),
        ("prior_weight", math.inf),
        ("budget", 0),
        ("explore_first", -1),
        ("explore_batch", 0),
        ("explore_widest", 0),
        ("confirm_least", 0),
        ("unit", "word"),
    ],
)
def test_a_search_that_cannot_be_is_refused_by_name_and_value(name: str, value: float | str) -> None:
    with pytest.raises(SearchError, match=f"^{name} is {value!r}; expected"):
        SearchSettings(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (0.8, 0.2), (-0.1, 0.5), (0.5, 1.1), (math.nan, 0.5)])
def test_the_band_of_undecided_problems_must_be_one(low: float, high: float) -> None:
    with pytest.raises(SearchError, match="expected 0 <= low < high <= 1"):
        SearchSettings(low=low, high=high)


def test_no_more_completions_are_searched_than_are_sampled() -> None:
    with pytest.raises(SearchError, match=r"completions_per_problem \(3\) exceeds base_rollouts \(2\)"):
        SearchSettings(base_rollouts=2, completions_per_problem=3)


def test_the_most_fresh_rollouts_are_not_fewer_than_the_fewest() -> None:
    with pytest.raises(SearchError, match=r"confirm_most \(10\) is below confirm_least \(12\)"):
        SearchSettings(confirm_most=10)


def test_settings_become_flat_json_under_the_names_of_their_groups() -> None:
    values = as_json(sampler=SamplerSettings(max_tokens=5), search=SearchSettings(tau=0.3))

    assert json.loads(json.dumps(values)) == values
    expected: dict[str, Any] = {"sampler.max_tokens": 5, "sampler.temperature": 1.0, "search.tau": 0.3}
    assert values.items() >= expected.items()
