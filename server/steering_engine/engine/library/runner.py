"""A forward of the library's batches, with its steering and our sampling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import pad
from transformers.generation.continuous_batching.model_runner import ModelRunner
from transformers.generation.continuous_batching.utils import stream_context

from steering_engine.blocks import SteeringHooks
from steering_engine.engine import attention, stable_experts
from steering_engine.engine.library.states import State
from steering_engine.engine.run import Run
from steering_engine.engine.sampler import sample_batch
from steering_engine.engine.stability import AlignedActivations
from steering_engine.engine.tensor_parallel import Followers
from steering_engine.steering.batch import BatchDecisions, BatchPlan
from steering_engine.steering.forward import ForwardPlan, upload
from steering_engine.steering.resident import ResidentPlan


class Runner(ModelRunner):  # type: ignore[misc]
    """Runs a batch: puts its steering plan before the hooks, and samples."""

    hooks: SteeringHooks
    runs: list[Run]
    eos_ids: frozenset[int]
    followers: Followers | None
    implementation: str
    tile: int
    activations: AlignedActivations
    decisions: BatchDecisions
    uploaded: ForwardPlan | None
    resident: ResidentPlan | None
    graph_rows: int
    static_scores: torch.Tensor | None
    scores: torch.Tensor

    def compute_batch(self, model: torch.nn.Module, batch_data: dict[str, Any]) -> None:
        """Runs a prepared batch and draws its tokens."""
        decisions = BatchDecisions()
        self.runs = []
        steered: list[tuple[Run, int]] = []
        offset = 0
        counts, ends = [], []
        for future in self.inputs_and_outputs.requests_in_batch:
            state = future.state
            counts.append(future.query_length)
            ends.append(state.position_offset)
            if isinstance(state, State):
                # The library has already advanced the position over the rows of this batch.
                start = state.position_offset - future.query_length
                if state.run.request.plan is not None:
                    state.run.plan_rows(decisions, offset, start, state.position_offset)
                    steered.append((state.run, state.position_offset))
                if future.has_new_token:
                    self.runs.append(state.run)
            offset += future.query_length
        layout = attention.PackedLayout(tuple(counts), tuple(ends), self.tile)
        plan = None if decisions.repeat(self.decisions) else decisions.plan()
        self.decisions = decisions
        if self.followers is not None:
            self.followers.forward(plan, layout, self.inputs_and_outputs, self.hooks.table)
        with stream_context(self.inputs_and_outputs.compute_stream):
            forward = self.forward(model, batch_data, plan, layout)
            answers = forward.answers() if forward is not None else {}
            for run, stop in steered:
                run.rows_done(stop, answers.get(run.key, {}))
            self._draw()

    def forward(
        self,
        model: torch.nn.Module,
        batch_data: dict[str, Any],
        plan: BatchPlan | None,
        layout: attention.PackedLayout,
    ) -> ForwardPlan | ResidentPlan | None:
        """Runs the forward with its steering; the followers of a shared model repeat exactly this.

        Args:
            model: The model.
            batch_data: The library's inputs.
            plan: What steering does; None is what it did in the forward before.
            layout: How the batch is packed.

        Returns:
            The plan on the device, with the answers to what it asked.
        """
        if self.tile:
            for name in ("input_ids", "position_ids", "logits_indices"):
                rows = batch_data[name]
                batch_data[name] = pad(rows, (0, -rows.shape[-1] % self.tile))
        if self.graph_rows:
            # Only a bound for the kernel; a graph for each of its values would be a graph for nothing.
            longest = self.cache.max_tokens_read
            for lengths in (batch_data["max_length_k"], self.inputs_and_outputs.max_length_k):
                lengths.update(dict.fromkeys(lengths, longest))
        with stream_context(self.inputs_and_outputs.compute_stream):
            self.hooks.plan = self._loaded(plan)
            try:
                with attention.packed_forward(model, self.implementation, layout), self._stable(model):
                    super().compute_batch(model, batch_data)
                return self.hooks.plan
            finally:
                self.hooks.plan = None

    def _loaded(self, plan: BatchPlan | None) -> ForwardPlan | ResidentPlan | None:
        """The plan on the device; a captured graph looks at its buffers even if there is nothing in them."""
        if plan is None:  # what was there before still is
            return self.resident or self.uploaded
        if self.resident is not None and self.resident.holds(plan):
            self.resident.load(plan)
            return self.resident
        anything = plan.entries or plan.questions
        self.uploaded = upload(plan, self.cache.device) if anything else None
        return self.uploaded

    def _get_forward_fn(self, use_block_table: bool) -> tuple[Any, bool]:
        # Prefill is bound by arithmetic, gains nothing from a graph, and would need one for every size.
        forward, graph = super()._get_forward_fn(use_block_table)
        small = self.inputs_and_outputs.num_q_tokens <= self.graph_rows
        return forward, graph and small and self.hooks.plan is self.resident

    @contextmanager
    def _stable(self, model: Any) -> Iterator[None]:
        """Keeps what is neither product nor attention independent of the batch, where that is promised."""
        if not self.tile:
            yield
            return
        with self.activations, stable_experts.whole_tiles(model.config.get_text_config()):
            yield

    def _sample(self, scores: torch.Tensor, output_ids: torch.Tensor) -> None:  # noqa: ARG002 -- the library's signature
        # Tokens are drawn when the forward is over: what it decided of the steering has to be known before.
        # The ids are written to the same place then, so what is given here is not needed.
        if self.static_scores is None:
            self.scores = scores[0]
        else:  # a replayed graph writes where its capture did
            self.static_scores[: scores.shape[1]].copy_(scores[0])
            self.scores = self.static_scores

    def _draw(self) -> None:
        scores, output_ids = self.scores, self.inputs_and_outputs.output_ids
        count = len(self.runs)
        if count == 0:  # rows of the trial, or none that predicts a token
            return
        ids, logprobs = sample_batch(scores[:count], self.runs, self.eos_ids)
        output_ids[0, :count].copy_(ids)
        # The library carries log-probabilities as the bits of a float32 in an int32 tensor.
        output_ids[1, :count].copy_(logprobs.view(torch.int32))
