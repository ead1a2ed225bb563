"""Random values of the contract's types, admissible or not: whatever fits onto the wire."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from steering_spec import (
    Ablate,
    Add,
    Chat,
    ChatMessage,
    Clamp,
    Clause,
    ConflictPolicy,
    ContextTrigger,
    GenerationSpec,
    Phase,
    Positions,
    ProbeTrigger,
    PromptIds,
    PromptText,
    SamplingParams,
    Selector,
    SimilarityTrigger,
    SteeringRule,
    SteeringSpec,
    TokenSet,
    Window,
)

int32 = st.integers(-(2**31), 2**31 - 1)
int64 = st.integers(-(2**63), 2**63 - 1)
count = st.integers(0, 2**31 - 1)
text = st.text(st.characters(codec="utf-8"), max_size=20)
float32 = st.floats(width=32, allow_nan=False)
float64 = st.floats(allow_nan=False)
name = st.from_regex(r"vectors/[a-z][a-z0-9-]{0,8}(@[0-9a-f]{64})?", fullmatch=True)


def tuples(of: st.SearchStrategy[Any], max_size: int = 4) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(of, max_size=max_size).map(tuple)


clauses = st.builds(
    Clause,
    st.sampled_from(Phase),
    st.none()
    | st.builds(Positions, tuples(int32))
    | st.builds(Window, int32, st.none() | int32)
    | st.builds(TokenSet, tuples(int32)),
)
operations = (
    st.builds(Add, st.booleans())
    | st.builds(Ablate)
    | st.builds(Clamp, st.none() | float64, st.none() | float64)
)
triggers = st.builds(ContextTrigger, st.none() | count, count, count, st.none() | count) | st.one_of(
    st.builds(kind, st.none() | int32, st.none() | float64, count, count, st.none() | count)
    for kind in (ProbeTrigger, SimilarityTrigger)
)
rules = st.builds(
    SteeringRule,
    vector=name,
    strength=float64,
    layers=tuples(count),
    operation=operations,
    selector=st.builds(Selector, tuples(clauses), tuples(clauses)),
    trigger=st.none() | triggers,
)
steerings = st.builds(SteeringSpec, tuples(rules, 3), st.sampled_from(ConflictPolicy))
prompts = (
    st.builds(PromptText, text)
    | st.builds(PromptIds, tuples(int32))
    | st.builds(Chat, tuples(st.builds(ChatMessage, text, text)), st.booleans())
)
biases = st.dictionaries(int32, float32, max_size=4).map(lambda found: tuple(sorted(found.items())))
samplings = st.builds(
    SamplingParams,
    temperature=float64,
    top_p=float64,
    top_k=st.none() | int32,
    max_tokens=st.none() | int32,
    seed=st.none() | int64,
    stop=tuples(text),
    min_p=float64,
    banned_first_ids=tuples(int32),
    n=int32,
    min_tokens=int32,
    repetition_penalty=float64,
    presence_penalty=float64,
    frequency_penalty=float64,
    logit_bias=biases,
    top_logprobs=int32,
)
specs = st.builds(GenerationSpec, prompts, samplings, st.none() | steerings, text, text, st.booleans())
