"""Random steering, drawn by hypothesis: whatever a request may ask for of the vectors of `lively_vectors`."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import strategies as st

from steering_engine.vectors.schema import SteeringVector
from steering_spec import (
    Ablate,
    Add,
    Clamp,
    Clause,
    ConflictPolicy,
    ContextTrigger,
    Operation,
    Phase,
    Positions,
    ProbeTrigger,
    Selector,
    SimilarityTrigger,
    SteeringRule,
    SteeringSpec,
    TokenSet,
    Trigger,
    Window,
)
from tests.support.lively import ALPHABET

STEPS = 14
"""Most tokens of a completion here."""
_STRENGTHS = st.sampled_from([1.0, -1.0, 0.5, 2.0, -0.3, 0.7, 0.0])
_BOUNDS = st.sampled_from([-4.0, -1.0, 0.0, 0.5, 3.0])


@st.composite
def steerings(draw: st.DrawFn, vectors: Mapping[str, SteeringVector], prompt_length: int) -> SteeringSpec:
    """One to four rules that admission finds nothing wrong with, for a prompt of so many tokens."""
    count = draw(st.sampled_from([2, 1, 3, 4]))
    rules = tuple(draw(_rules(vectors, prompt_length)) for _ in range(count))
    blocks = [block for rule in rules for block in rule.layers or vectors[rule.vector].directions]
    policies = [ConflictPolicy.SEQUENTIAL, ConflictPolicy.FIRST]
    if len(blocks) == len(set(blocks)):  # rules that can't meet may insist on it
        policies.append(ConflictPolicy.REJECT)
    return SteeringSpec(rules, draw(st.sampled_from(policies)))


@st.composite
def _rules(draw: st.DrawFn, vectors: Mapping[str, SteeringVector], prompt_length: int) -> SteeringRule:
    name = draw(st.sampled_from(sorted(vectors)))
    blocks = sorted(vectors[name].directions)
    layers = draw(st.one_of(st.just([]), st.lists(st.sampled_from(blocks), unique=True)))
    return SteeringRule(
        name,
        draw(_STRENGTHS),
        tuple(layers),
        draw(_operations()),
        draw(_selectors(prompt_length)),
        draw(_triggers(vectors[name], min(layers or blocks))),
    )


@st.composite
def _operations(draw: st.DrawFn) -> Operation:
    kind = draw(st.sampled_from([Add, Ablate, Clamp]))
    if kind is Add:
        return Add(draw(st.booleans()))
    if kind is Ablate:
        return Ablate()
    low, high = sorted([draw(_BOUNDS), draw(_BOUNDS)])
    return draw(st.sampled_from([Clamp(low, high), Clamp(min=low), Clamp(max=high)]))


def _triggers(vector: SteeringVector, first_layer: int) -> st.SearchStrategy[Trigger | None]:
    """Those that the vector can answer at or before the first steered block."""
    how_often = {
        "hold_steps": st.sampled_from([1, 1, 2, 3]),
        "cooldown_steps": st.sampled_from([0, 0, 1, 2]),
        "max_firings": st.sampled_from([None, None, 1, 2]),
    }
    probed = [block for block in sorted(vector.probes) if block <= first_layer]
    centred = [block for block in sorted(vector.centroids) if block <= first_layer]
    found: list[st.SearchStrategy[Trigger | None]] = [
        st.none(),
        st.builds(ContextTrigger, min_match_tokens=st.sampled_from([None, 1, 2, 3]), **how_often),
    ]
    if probed:
        thresholds = st.sampled_from([None, 0.1, 0.3, 0.5, 0.7])
        found.append(st.builds(ProbeTrigger, st.sampled_from([None, *probed]), thresholds, **how_often))
    if centred:
        cosines = st.sampled_from([None, 0.0, 0.2, 0.4, 0.6])
        found.append(st.builds(SimilarityTrigger, st.sampled_from([None, *centred]), cosines, **how_often))
    return st.one_of(found)


@st.composite
def _selectors(draw: st.DrawFn, prompt_length: int) -> Selector:
    # Every step is what most requests ask for, and what lets triggers speak.
    included, excluded = draw(st.sampled_from([(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 2)]))
    include = [draw(_clauses(prompt_length)) for _ in range(included)]
    exclude = [draw(_clauses(prompt_length)) for _ in range(excluded)]
    if not include or draw(st.booleans()):
        include.append(Clause(Phase.GENERATION))
    return Selector(tuple(include), tuple(exclude))


@st.composite
def _clauses(draw: st.DrawFn, prompt_length: int) -> Clause:
    phase = draw(st.sampled_from([Phase.GENERATION, Phase.GENERATION, Phase.PROMPT]))
    first, stop = (-prompt_length, prompt_length) if phase is Phase.PROMPT else (0, STEPS)
    positions = st.lists(st.integers(first, stop - 1), min_size=1, max_size=4).map(tuple)
    tokens = st.lists(st.sampled_from(ALPHABET), min_size=2, max_size=5).map(tuple)
    predicates = st.one_of(
        st.builds(TokenSet, tokens),
        st.builds(Positions, positions),
        _prompt_windows(prompt_length) if phase is Phase.PROMPT else _step_windows(),
        st.none(),
    )
    return Clause(phase, draw(predicates))


@st.composite
def _prompt_windows(draw: st.DrawFn, prompt_length: int) -> Window:
    start = draw(st.integers(0, prompt_length - 1))
    end = draw(st.integers(start + 1, prompt_length))
    # Each bound may count from the prompt's end, where the end itself is written as an open one.
    return Window(
        draw(st.sampled_from([start, start - prompt_length])),
        draw(st.sampled_from([end, (end - prompt_length) or None])),
    )


@st.composite
def _step_windows(draw: st.DrawFn) -> Window:
    start = draw(st.integers(0, STEPS - 1))
    return Window(start, draw(st.none() | st.integers(start + 1, STEPS)))
