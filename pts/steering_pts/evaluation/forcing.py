"""The forced best alternative: what the answers would be if no worse token of a known decision were ever drawn.

The run confirmed decisions between a better and a worse token. Where a completion comes to such a decision (the ids so
far end like a recorded context of the vector) and draws a token that is known as the worse one there, the better
token takes its place, and generation goes on behind it. Nothing is steered; it is what better choices are worth, as far
as the run knows them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from steering_engine.engine.text import TextStream
from steering_engine.steering.contexts import ContextIndex
from steering_pts.evaluation.samples import Sample
from steering_pts.evaluation.sampling import Wanted
from steering_pts.seeds import derive_seed
from steering_spec import FinishReason, PromptIds, SamplingParams, SteeringAct

Complete = Callable[[Sequence[Wanted]], list[tuple[Sample, ...]]]


@dataclass(frozen=True, slots=True)
class Decision:
    """A confirmed decision of a run: the better and the worse token after a prefix."""

    prefix_ids: tuple[int, ...]
    chosen_id: int
    rejected_id: int


@dataclass(frozen=True, slots=True)
class KnownAlternatives:
    """Where a kind of decision is taken, and which token is better than which.

    Attributes:
        contexts: Recorded contexts of the decision.
        min_match: Ids of a context that have to match.
        better: The better token by the worse one.
    """

    contexts: ContextIndex
    min_match: int
    better: Mapping[int, int]

    def of(self, ids: Sequence[int], token_id: int) -> int | None:
        """The token that is better than one drawn after these ids; None where none is known."""
        chosen = self.better.get(token_id)
        if chosen is None or self.contexts.longest_match(ids) < self.min_match:
            return None
        return chosen


def known_alternatives(
    contexts: Sequence[tuple[int, ...]], min_match: int, decisions: Sequence[Decision]
) -> KnownAlternatives | None:
    """What a run knows of the decisions at these contexts; None where it is nothing.

    A worse token for which decisions disagree about the better one (a digit, say, that is right in another problem) is
    left out.
    """
    index = ContextIndex(contexts)
    found: dict[int, set[int]] = defaultdict(set)
    for decision in decisions:
        if index.longest_match(decision.prefix_ids) >= min_match:
            found[decision.rejected_id].add(decision.chosen_id)
    better = {worse: next(iter(chosen)) for worse, chosen in found.items() if len(chosen) == 1}
    # A token that is worse in one decision and better in another would be put back and forth.
    better = {worse: chosen for worse, chosen in better.items() if chosen not in better}
    return KnownAlternatives(index, min_match, better) if better and min_match > 0 else None


@dataclass(frozen=True, slots=True)
class Start:
    """A completion that alternatives are forced in.

    Attributes:
        problem_id: Its problem.
        index: Which completion of the problem it is.
        prompt_ids: Its prompt.
        sample: The unsteered completion.
        max_tokens: Longest completion.
    """

    problem_id: str
    index: int
    prompt_ids: tuple[int, ...]
    sample: Sample
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Forcing:
    """Forces alternatives.

    Attributes:
        known: The decisions, of each vector.
        sampling: How completions are drawn.
        seed: Of the evaluation.
        tokenizer: The model's.
        complete: Makes completions, in order.
    """

    known: Sequence[KnownAlternatives]
    sampling: SamplingParams
    seed: int
    tokenizer: Any
    complete: Complete

    def force(self, starts: Sequence[Start]) -> list[Sample]:
        """Each completion with the better tokens; one that holds no worse token stays as it is."""
        samples = [start.sample for start in starts]
        searched = [0] * len(starts)
        left = list(range(len(starts)))
        while left:
            wanted: list[tuple[int, Wanted]] = []
            for at in left:
                start = starts[at]
                found = self._first(start.prompt_ids, samples[at].ids, searched[at])
                if found is None:
                    continue
                step, token_id = found
                ids = (*samples[at].ids[:step], token_id)
                act = SteeringAct(rule_index=0, layers=(), step=step)
                samples[at] = replace(
                    samples[at], ids=ids, acts=(*samples[at].acts, act), finish=self._end(ids, start)
                )
                searched[at] = step + 1
                if samples[at].finish is None:
                    wanted.append((at, self._rest(start, ids)))
            completions = self.complete([one for _, one in wanted]) if wanted else []
            left = [at for at, _ in wanted]
            for at, (rest,) in zip(left, completions, strict=True):
                samples[at] = replace(samples[at], ids=samples[at].ids + rest.ids, finish=rest.finish)
        return [replace(sample, text=self._text(sample.ids)) if sample.acts else sample for sample in samples]

    def _first(self, prompt_ids: Sequence[int], ids: Sequence[int], start: int) -> tuple[int, int] | None:
        """The first step from `start` on at which a worse token was drawn, and the better one."""
        history = [*prompt_ids, *ids[:start]]
        for step in range(start, len(ids)):
            for known in self.known:
                chosen = known.of(history, ids[step])
                if chosen is not None:
                    return step, chosen
            history.append(ids[step])
        return None

    def _end(self, ids: Sequence[int], start: Start) -> FinishReason | None:
        """Why a completion ends with the forced token; None where it goes on."""
        if ids[-1] in self.tokenizer.all_special_ids:
            return FinishReason.EOS
        return FinishReason.LENGTH if len(ids) >= start.max_tokens else None

    def _rest(self, start: Start, ids: Sequence[int]) -> Wanted:
        seed = derive_seed(self.seed, start.problem_id, "forced", start.index, len(ids))
        sampling = replace(self.sampling, n=1, seed=seed, max_tokens=start.max_tokens - len(ids))
        return Wanted(PromptIds((*start.prompt_ids, *ids)), sampling, None)

    def _text(self, ids: Sequence[int]) -> str:
        text = TextStream(self.tokenizer)
        return "".join(map(text.feed, ids)) + text.finish()
