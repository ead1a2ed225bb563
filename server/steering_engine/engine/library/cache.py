"""The paged cache, with its two doors of prefix sharing salted."""

from __future__ import annotations

from typing import Any

import torch
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.requests import RequestState, RequestStatus

from steering_engine.engine import attention
from steering_engine.engine.library.states import State
from steering_engine.engine.limits import PAGE_TOKENS
from steering_engine.engine.messages import CopyPages
from steering_engine.engine.run import Run
from steering_engine.engine.salt import salted_ids
from steering_engine.engine.tensor_parallel import Followers


class SaltedCache(PagedAttentionCache):  # type: ignore[misc]
    """The paged cache, with pages shared only between requests that steer them alike, and keys read in place."""

    runs: dict[str, Run]
    followers: Followers | None

    def perform_cache_copy(self, copy_src_and_dst: dict[str, tuple[list[int], list[int]]]) -> None:
        """Copies pages, here and in the followers of a shared model."""
        if self.followers is not None:
            self.followers.send(CopyPages(copy_src_and_dst))
        super().perform_cache_copy(copy_src_and_dst)

    def store(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, kwargs: dict[str, Any]
    ) -> attention.StoredKeys:
        """Writes the new keys and values of a layer, `[1, kv_heads, rows, head_dim]`; tells where all are.

        `update`, which the library's own attention calls here, copies them out of the pages; they are copied again to
        where attention wants them.
        """
        allocator = self.layer_to_allocator[layer]
        places, written = (kwargs[name][allocator.index] for name in ("read_index", "write_index"))
        # It reads nothing where the batch has no rows but the new ones; and a sliding cache overwrites what is read.
        in_place = len(places) > 0 and allocator.supports_block_table
        key, value = (one[0].transpose(0, 1) for one in (key, value))
        keys, values = allocator.update(key, value, layer, places[:0] if in_place else places, written)
        if in_place:
            keys, values = (pages.flatten(0, 1) for pages in allocator.get_cache_for_block_table(layer))
        return attention.StoredKeys(
            keys.transpose(0, 1),
            values.transpose(0, 1),
            kwargs["cu_seq_lens_k"][allocator.layer_type],
            places if in_place else None,
            allocator.index,
        )

    def search_prefix_match(self, request_id: str, prompt_ids: list[int]) -> int:
        """Tokens of a prompt whose pages are there, steered as this request is."""
        run = self.runs.get(request_id)
        if run is None:  # already cancelled; its steering is unknown here, so nothing may be shared
            return 0
        ids = salted_ids(prompt_ids, run.request.plan, PAGE_TOKENS, run.marks)
        if run.copies:
            # The library copies a request after a forward with all of its prompt's tokens but one; there has to be one
            # for that forward.
            ids = ids[:-1]
        matched: int = super().search_prefix_match(request_id, ids)
        return matched

    def mark_complete_blocks(self, state: RequestState, complete_blocks: dict[str, int]) -> None:
        """Lets pages that are complete be found by requests that are steered alike.

        Those of a steered prompt wait for its first token. A row that is steered out of the numbers spoils the rows
        before it that are computed in the same forward: their attention gives it no weight, but nothing times what is
        no number is no number. Then there is no token, and the pages are never shared.
        """
        run = state.run if isinstance(state, State) else None
        if run is None or run.request.plan is None:
            super().mark_complete_blocks(state, complete_blocks)
            return
        if state.status == RequestStatus.FINISHED:
            return
        for name, count in complete_blocks.items():
            state.unmarked[name] = state.unmarked.get(name, 0) + count
        if not state.unmarked or not state.generated_tokens:
            return
        ids = salted_ids(
            state.initial_tokens + state.generated_tokens, run.request.plan, PAGE_TOKENS, run.marks
        )
        for name, count in state.unmarked.items():
            # The newest token has no row yet; a copy of this request may have had some of these pages marked.
            self.cache_allocators[name].mark_complete_blocks(
                state.request_id, ids[: state.position_offset], count
            )
        state.unmarked.clear()
