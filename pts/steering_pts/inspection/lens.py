"""Which tokens a direction points to: the logit lens, applied to a direction in place of a state.

The logit lens (nostalgebraist, "interpreting GPT: the logit lens", 2020; as tuned and criticised by N. Belrose et al.,
arXiv 2303.08112) reads a state h at any block as W norm(h), with the model's own final norm and unembedding. A
direction d is a difference of states, of which the norm's length is not its own; what carries over is the norm's linear
part, its gain and, of a layer norm, the centring. So the odd part of the lens, (lens(d) - lens(-d)) / 2, is taken: of
an RMS norm it is the lens itself, of a layer norm the lens without what its bias says of every direction. Scores are
standardised over the vocabulary, for their scale would mean nothing.

The final norm is applied because its gain differs widely between the dimensions of the residual stream: without it the
few that it all but switches off would decide. Blocks after the direction's own are not accounted for, as in any logit
lens: of early blocks the tokens say little.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from steering_engine.blocks import find_blocks
from steering_engine.errors import ModelError
from steering_engine.loading import LoadedModel

_ROWS_AT_ONCE: Final = 1 << 14  # of the unembedding, which is large, in float32


@dataclass(frozen=True, slots=True)
class NearToken:
    """A token and its score: standard deviations above the mean of the vocabulary."""

    token_id: int
    token: str
    score: float


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The tokens that a direction raises most, and those that it lowers most, the strongest first."""

    raised: tuple[NearToken, ...]
    lowered: tuple[NearToken, ...]


def nearest_tokens(
    loaded: LoadedModel, directions: Mapping[int, torch.Tensor], count: int
) -> dict[int, Neighbours]:
    """The nearest tokens of directions `[hidden]`, by block.

    Raises:
        ModelError: The model has no unembedding.
    """
    if loaded.model.get_output_embeddings() is None:
        raise ModelError(f"{loaded.source}: it has no unembedding, so no direction points to tokens")
    norm = final_norm(loaded.model)
    known = min(
        loaded.vocab_size, len(loaded.tokenizer)
    )  # rows beyond the tokenizer's ids only fill up the matrix
    return {
        block: _neighbours(loaded, lens_scores(loaded.model, norm, direction)[:known], count)
        for block, direction in directions.items()
    }


def lens_scores(model: Any, norm: torch.nn.Module | None, direction: torch.Tensor) -> torch.Tensor:
    """The odd part of the logit lens at a direction `[hidden]`, standardised: `[vocabulary]` float64.

    In float32 whatever the model's own type: bfloat16 has 8 bits, in which the nearest of many tokens score alike.
    """
    # What else an unembedding has, a bias, is no part of the odd one.
    weight = next(model.get_output_embeddings().parameters())
    states = torch.stack([direction, -direction]).to(weight.device, torch.float32)
    with torch.no_grad():
        if norm is not None:
            states = copy.deepcopy(norm).float()(states)
        odd = (states[0] - states[1]) / 2
        scores = torch.cat([rows.float() @ odd for rows in weight.split(_ROWS_AT_ONCE)]).double().cpu()
    return torch.nan_to_num((scores - scores.mean()) / scores.std())  # 0 where all tokens are alike


def final_norm(model: Any) -> torch.nn.Module | None:
    """The norm between the last block and the unembedding, found by running the model; None where there is none.

    It is the module outside the blocks that is given what the last block gives out.
    """
    blocks = find_blocks(model)
    inside = {module for block in blocks for module in block.modules()}
    last: list[torch.Tensor] = []
    found: list[torch.nn.Module] = []

    def note(_module: torch.nn.Module, _args: Any, output: Any) -> None:
        last[:] = [output[0] if isinstance(output, tuple) else output]

    def look(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if last and args and args[0] is last[0]:
            found.append(module)

    head = model.get_output_embeddings()
    handles = [blocks[-1].register_forward_hook(note)]
    handles += [
        module.register_forward_pre_hook(look)
        for module in model.modules()
        if module not in inside and module is not head
    ]
    try:
        with torch.no_grad():
            model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _neighbours(loaded: LoadedModel, scores: torch.Tensor, count: int) -> Neighbours:
    most = min(count, len(scores))

    def tokens(sign: int) -> tuple[NearToken, ...]:
        best = torch.topk(sign * scores, most)
        return tuple(
            NearToken(token_id, str(loaded.tokenizer.decode([token_id])), float(scores[token_id]))
            for token_id in best.indices.tolist()
        )

    return Neighbours(tokens(1), tokens(-1))
