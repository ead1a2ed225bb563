"""What vectors would do to a neutral text: the steps at which they act on it, found by teacher forcing.

A generated completion tells its own acts. A given text has none yet, so the triggers are asked here as the engine asks
them: a context by the ids before the step, a probe or a similarity by the residual stream of the step's own row before
any rule acts on it there. All steps are forced in one forward, which is exact: what a rule does at a row changes later
rows, and a block's own reading, through the blocks in their order, and so it does here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from steering_engine.blocks import find_blocks
from steering_engine.loading import LoadedModel
from steering_engine.steering.contexts import ContextIndex
from steering_engine.steering.ops import add
from steering_pts.calibration.divergence import TracedCompletion
from steering_pts.errors import EvaluationError
from steering_pts.evaluation.served import ServedVector
from steering_spec import ContextTrigger, ProbeTrigger, SimilarityTrigger, SteeringAct, SteeringSpec
from steering_spec.trigger_admission import readable_blocks

WINDOW_TOKENS: Final = 512
"""A long text is cut into pieces of so many tokens."""


def neutral_completions(
    loaded: LoadedModel, text: str, vectors: Sequence[ServedVector], steering: SteeringSpec
) -> list[TracedCompletion]:
    """A text as completions with the acts of the vectors; of each piece, the first token is the prompt.

    Args:
        loaded: The model.
        text: The text.
        vectors: The vectors, in the order of the rules.
        steering: Their rules.

    Raises:
        EvaluationError: The text has fewer than two tokens.
    """
    ids = neutral_ids(loaded.tokenizer, text)
    window = min(WINDOW_TOKENS, loaded.context_tokens)
    completions = []
    for start in range(0, len(ids) - 1, window - 1):
        piece = ids[start : start + window]
        acts = acts_on(loaded, piece, vectors)
        completions.append(TracedCompletion(piece[:1], piece[1:], steering, acts))
    return completions


def neutral_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The ids of a text.

    Raises:
        EvaluationError: There are fewer than two: no step.
    """
    # Longer than the context it may be: it is cut into pieces.
    ids = tuple(tokenizer(text, verbose=False)["input_ids"])
    if len(ids) < 2:
        raise EvaluationError(f"the neutral text has {len(ids)} tokens; expected at least 2")
    return ids


@torch.inference_mode()
def acts_on(
    loaded: LoadedModel, ids: Sequence[int], vectors: Sequence[ServedVector]
) -> tuple[SteeringAct, ...]:
    """Every act of the vectors on a text whose first token is the prompt, by step.

    Args:
        loaded: The model.
        ids: Its ids, at least two; step j is the row of id j.
        vectors: The vectors; each has its own trigger, which may fire at any step.
    """
    rows = len(ids) - 1
    asked = [_Asked.of(vector, ids, loaded.device) for vector in vectors]
    with _answering(loaded, asked):
        loaded.model(
            input_ids=torch.tensor([list(ids[:rows])], device=loaded.device),
            use_cache=False,
            logits_to_keep=1,
        )
    return tuple(
        SteeringAct(rule_index=rule, layers=one.vector.blocks, step=step)
        for step in range(rows)
        for rule, one in enumerate(asked)
        if one.fires[step]
    )


@dataclass(slots=True, eq=False)
class _Asked:
    """A vector, and the steps at which it fires as far as they are known.

    Attributes:
        vector: The vector.
        fires: `[rows]`.
        block: Block that its trigger reads; None where it reads none.
        weights: `[k, hidden]`: what a row is compared with; the largest product counts.
        bias: What is added to that.
        threshold: Least value that fires.
        unit: Whether rows are made unit vectors first.
    """

    vector: ServedVector
    fires: torch.Tensor
    block: int | None = None
    weights: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    bias: float = 0.0
    threshold: float = 0.0
    unit: bool = False

    @classmethod
    def of(cls, served: ServedVector, ids: Sequence[int], device: torch.device) -> _Asked:
        vector, metadata = served.vector, served.vector.metadata
        rows, first = len(ids) - 1, served.blocks[0]
        nowhere = torch.zeros(rows, dtype=torch.bool, device=device)
        match served.trigger:
            case ContextTrigger(min_match_tokens=least):
                index = ContextIndex(vector.contexts)
                needed = least or metadata.context_min_match
                fires = [index.longest_match(ids[: step + 1]) >= needed for step in range(rows)]
                return cls(served, torch.tensor(fires, device=device))
            case ProbeTrigger(layer=block, threshold=threshold):
                if block is None:
                    own = {at: metadata.probe_threshold.get(at) for at in vector.probes}
                    readable = readable_blocks(own, first, threshold)
                    block = max(readable, key=lambda at: (metadata.probe_auc.get(at, 0.0), at))
                least_p = metadata.probe_threshold[block] if threshold is None else threshold
                probe = vector.probes[block]
                logit = math.log(least_p) - math.log1p(-least_p)
                return cls(served, nowhere, block, probe.weight[None].to(device), probe.bias, logit)
            case SimilarityTrigger(layer=block, min_cosine=cosine):
                if block is None:
                    own = {at: metadata.centroid_min_cosine.get(at) for at in vector.centroids}
                    block = max(readable_blocks(own, first, cosine))
                least_cosine = metadata.centroid_min_cosine[block] if cosine is None else cosine
                centroids = vector.centroids[block].to(device)
                unit = centroids / centroids.norm(dim=1, keepdim=True)
                return cls(served, nowhere, block, unit, 0.0, least_cosine, unit=True)
            case _:
                return cls(served, torch.ones_like(nowhere))

    def read(self, hidden: torch.Tensor) -> None:
        """Decides all steps by the residual stream `[rows, hidden]` of the block that the trigger reads."""
        values = (hidden.float() @ self.weights.T).amax(dim=1)
        if self.unit:
            values = values / hidden.float().norm(dim=1)
        self.fires = values + self.bias >= self.threshold

    def steer(self, block: int, hidden: torch.Tensor) -> torch.Tensor:
        """The residual stream `[rows, hidden]` of a block, steered where the vector fires."""
        direction = self.vector.vector.directions[block].to(hidden.device)
        strength = self.vector.strength * self.vector.vector.metadata.calibrated_strength[block]
        strengths = torch.full((len(hidden),), strength, device=hidden.device)
        moved = add(hidden, direction.expand(len(hidden), -1), strengths)
        return torch.where(self.fires[:, None], moved, hidden)


@contextmanager
def _answering(loaded: LoadedModel, asked: Sequence[_Asked]) -> Iterator[None]:
    """The next forward asks the triggers, and steers where they fire."""
    blocks = find_blocks(loaded.model)

    def hook(block: int) -> Any:
        def act(_module: torch.nn.Module, _args: Any, output: Any) -> Any:
            hidden = (output[0] if isinstance(output, tuple) else output)[0]
            for one in asked:
                if one.block == block:
                    one.read(hidden)
            for one in asked:
                if block in one.vector.blocks:
                    hidden = one.steer(block, hidden)
            return (hidden[None], *output[1:]) if isinstance(output, tuple) else hidden[None]

        return act

    used = {block for one in asked for block in (*one.vector.blocks, one.block) if block is not None}
    handles = [blocks[block].register_forward_hook(hook(block)) for block in sorted(used)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
