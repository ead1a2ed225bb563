"""What an engine is made with, as far as the model and its device decide it."""

from __future__ import annotations

from importlib.util import find_spec

from steering_engine.engine import cuda_attention
from steering_engine.engine.library.trial import GRAPH_ROWS
from steering_engine.engine.limits import EngineLimits
from steering_engine.engine.stability import Tile, row_tile, unstable_reason
from steering_engine.errors import ModelError
from steering_engine.loading import LoadedModel

_LEAST_TRIED = 1024  # rows of a forward


def offload_gib(loaded: LoadedModel, limits: EngineLimits) -> float:
    """Memory of the host for cached rows.

    Raises:
        ModelError: It is asked for where the cache is in that memory already.
    """
    asked = limits.offload_gib
    if asked and loaded.device.type != "cuda":
        raise ModelError(
            "offload_gib needs a CUDA device; elsewhere the cache is in the host's memory already"
        )
    return asked


def graph_rows(loaded: LoadedModel, limits: EngineLimits) -> int:
    """Rows of the largest forward that runs as a captured graph; 0 when none does.

    Raises:
        ModelError: Graphs are asked for and can't be had.
    """
    wanted = limits.cuda_graphs
    if wanted is False:
        return 0
    reason = cuda_attention.unsupported_reason(loaded)
    if reason is None and find_spec("triton") is None:
        reason = "Triton is not installed"
    if reason is None:
        rows = min(limits.max_concurrent_requests, limits.max_batch_tokens)
        return -(-rows // GRAPH_ROWS) * GRAPH_ROWS
    if wanted:
        raise ModelError(f"{type(loaded.model).__name__} can't be run in CUDA graphs: {reason}")
    return 0


def row_tiles(loaded: LoadedModel, limits: EngineLimits) -> Tile:
    """Tiles that a forward's rows come in, so that each has the same bits in any batch; of 0 rows: any number.

    Raises:
        ModelError: That is asked for and can't be done.
    """
    if limits.deterministic is False:
        return Tile(0, limits.max_batch_tokens)
    reason = unstable_reason(loaded)
    # Tried as far for smaller forwards, so that engines with other limits come to the same tile and the same bits.
    tile = None if reason else row_tile(loaded, max(limits.max_batch_tokens, _LEAST_TRIED))
    if tile is None and limits.deterministic:
        reason = reason or "products on this machine depend on the batch, whatever its rows are made up to"
        raise ModelError(f"{type(loaded.model).__name__} can't be run deterministically: {reason}")
    return tile or Tile(0, limits.max_batch_tokens)


def eos_ids(loaded: LoadedModel) -> frozenset[int]:
    """End-of-sequence ids of the generation config and of the tokenizer."""
    configured = getattr(loaded.model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(token_id for token_id in [*ids, loaded.tokenizer.eos_token_id] if token_id is not None)
