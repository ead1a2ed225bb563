"""The part of admission that judges selectors: where a rule acts."""

from __future__ import annotations

from collections.abc import Iterator

from steering_spec import limits
from steering_spec.exclusion import Exclusion
from steering_spec.steering import Clause, Phase, Positions, Selector, TokenSet, Window
from steering_spec.violation import Violation


def named_values(selector: Selector) -> int:
    """Explicit positions and token ids of all clauses of a selector."""
    predicates = [clause.predicate for clause in (*selector.include, *selector.exclude)]
    positions = sum(len(one.positions) for one in predicates if isinstance(one, Positions))
    return positions + sum(len(one.ids) for one in predicates if isinstance(one, TokenSet))


def selector_violations(
    path: str,
    selector: Selector,
    prompt_length: int | None = None,
    max_steps: int | None = None,
    vocab_size: int | None = None,
) -> Iterator[Violation]:
    """What is wrong with a selector; clauses that can select nothing are refused.

    Without the prompt's length, only those are that select nothing in a prompt of any length. `max_steps` are the
    steps that there can be at most; None where that isn't known.
    """
    if not selector.include:
        yield Violation(f"{path}.include", "at least one clause is needed")
    sound: dict[str, list[tuple[int, Clause]]] = {"include": [], "exclude": []}
    for name, clauses in (("include", selector.include), ("exclude", selector.exclude)):
        if len(clauses) > limits.MAX_CLAUSES:
            yield Violation(f"{path}.{name}", f"more than {limits.MAX_CLAUSES} clauses")
        for index, clause in enumerate(clauses[: limits.MAX_CLAUSES]):
            where = f"{path}.{name}[{index}]"
            is_sound = True
            for violation in _clause_violations(where, clause, prompt_length, max_steps, vocab_size):
                is_sound = False
                yield violation
            if is_sound:
                sound[name].append((index, clause))
    if sound["exclude"]:
        exclusion = Exclusion.of([clause for _, clause in sound["exclude"]], prompt_length, max_steps)
        for index, clause in sound["include"]:
            if exclusion.hides(clause):
                yield Violation(
                    f"{path}.include[{index}]", "selects nothing: every row that it names is excluded"
                )


def _clause_violations(
    path: str, clause: Clause, prompt_length: int | None, max_steps: int | None, vocab_size: int | None
) -> Iterator[Violation]:
    in_prompt = clause.phase is Phase.PROMPT
    if isinstance(clause.predicate, Positions):
        yield from _position_violations(path, clause.predicate, in_prompt, prompt_length, max_steps)
    elif isinstance(clause.predicate, Window):
        yield from _window_violations(path, clause.predicate, in_prompt, prompt_length, max_steps)
    elif isinstance(clause.predicate, TokenSet):
        yield from _token_violations(f"{path}.tokens.ids", clause.predicate.ids, vocab_size)


def _token_violations(path: str, ids: tuple[int, ...], vocab_size: int | None) -> Iterator[Violation]:
    if not ids:
        yield Violation(path, "selects nothing; name at least one token")
    if len(ids) > limits.MAX_TOKEN_SET_IDS:
        yield Violation(path, f"more than {limits.MAX_TOKEN_SET_IDS} tokens")
        return
    size = limits.INT32_MAX if vocab_size is None else vocab_size
    for index, token_id in enumerate(ids):
        if not 0 <= token_id < size:
            yield Violation(f"{path}[{index}]", f"{token_id} is outside [0, {size})")


def _position_violations(
    path: str, positions: Positions, in_prompt: bool, prompt_length: int | None, max_steps: int | None
) -> Iterator[Violation]:
    if not positions.positions:
        yield Violation(f"{path}.positions.positions", "selects nothing; name at least one position")
    if len(positions.positions) > limits.MAX_POSITIONS:
        yield Violation(f"{path}.positions.positions", f"more than {limits.MAX_POSITIONS} positions")
        return
    for index, position in enumerate(positions.positions):
        where = f"{path}.positions.positions[{index}]"
        if abs(position) > limits.INT32_MAX:
            yield Violation(where, f"{position} does not fit into 32 bits")
        elif not in_prompt and position < 0:
            yield Violation(where, f"step {position}: steps count from 0, the generation's end is not known")
        elif in_prompt and prompt_length is not None and not -prompt_length <= position < prompt_length:
            yield Violation(where, f"position {position} is outside a prompt of {prompt_length} tokens")
        elif not in_prompt and max_steps is not None and position >= max_steps:
            yield Violation(where, _beyond(position, max_steps))


def _window_violations(
    path: str, window: Window, in_prompt: bool, prompt_length: int | None, max_steps: int | None
) -> Iterator[Violation]:
    where = f"{path}.range"
    start, end = window.start, window.end
    if abs(start) > limits.INT32_MAX or abs(end or 0) > limits.INT32_MAX:
        yield Violation(where, f"[{start}, {end}) does not fit into 32 bits")
        return
    if not in_prompt and (start < 0 or (end is not None and end < 0)):
        yield Violation(where, f"[{start}, {end}): steps count from 0, the generation's end is not known")
        return
    if in_prompt and prompt_length is not None:
        start = start + prompt_length if start < 0 else start
        end = prompt_length if end is None else end + prompt_length if end < 0 else end
        if start < 0 or end < 0 or start >= prompt_length or end > prompt_length:
            yield Violation(
                where, f"[{window.start}, {window.end}) reaches outside a prompt of {prompt_length} tokens"
            )
            return
    same_side = end is not None and (start < 0) == (end < 0)
    if end == 0 or (end is not None and same_side and end <= start):
        yield Violation(
            where, f"[{window.start}, {window.end}) selects nothing; the end must lie after the start"
        )
    elif not in_prompt and max_steps is not None and start >= max_steps:
        yield Violation(where, _beyond(start, max_steps))


def _beyond(step: int, max_steps: int) -> str:
    return f"step {step} can't be reached: the context has room for {max_steps} steps, counted from 0"
