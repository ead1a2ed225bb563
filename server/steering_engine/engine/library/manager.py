"""The library's manager and its thread, and the doors that the engine uses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.continuous_api import (
    BackgroundThreadStatus,
    ContinuousBatchingManager,
    ContinuousBatchProcessor,
)
from transformers.generation.continuous_batching.distributed import DistributedHelper

from steering_engine.blocks import SteeringHooks
from steering_engine.engine import attention, cuda_attention, eager_attention, stable_experts
from steering_engine.engine.library import choices
from steering_engine.engine.library.cache import SaltedCache
from steering_engine.engine.library.delivery import Router, wake_callers
from steering_engine.engine.library.departures import Departures
from steering_engine.engine.library.inputs import set_sizes, share_tensors
from steering_engine.engine.library.runner import Runner
from steering_engine.engine.library.states import State
from steering_engine.engine.library.trial import GRAPH_ROWS, capture_graphs, check_layers, try_batches
from steering_engine.engine.limits import PAGE_TOKENS, EngineLimits
from steering_engine.engine.messages import CopyPages, Message, PlainForward
from steering_engine.engine.run import Run
from steering_engine.engine.stability import AlignedActivations
from steering_engine.engine.tensor_parallel import Followers
from steering_engine.errors import EngineStoppedError, one_line
from steering_engine.loading import LoadedModel
from steering_engine.sharding import splits_key_heads
from steering_engine.steering.batch import BatchDecisions
from steering_engine.steering.resident import ResidentPlan

_GRAPH_SIZES = 4  # of what captured graphs read of the cache
_LEAST_GRAPH_KEYS = 2048
_END_SECONDS = 30.0


class BatchLoad(NamedTuple):
    """The load of a batch manager; pages that are only kept for sharing count as free."""

    active_requests: int
    waiting_requests: int
    free_cache_tokens: int


class BatchManager(ContinuousBatchingManager):  # type: ignore[misc]
    """The library's manager with our runner, cache and router in it, and the doors that the engine uses.

    One that is started has to be tried before. In a follower of a shared model it only repeats what the driver does.
    """

    distributed_helper: DistributedHelper

    def __init__(
        self,
        loaded: LoadedModel,
        hooks: SteeringHooks,
        runs: dict[str, Run],
        limits: EngineLimits,
        followers: Followers | None = None,
    ) -> None:
        check_layers(loaded.model.config.get_text_config())
        stable_experts.register()
        self._hooks = hooks
        self._runs = runs
        self._followers = followers
        self._eos_ids = choices.eos_ids(loaded)
        self._loaded = loaded
        self._limits = limits
        self._departures = Departures()
        super().__init__(
            model=loaded.model,
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=PAGE_TOKENS,
                num_blocks=limits.cache_pages,
                max_batch_tokens=limits.max_batch_tokens,
                max_requests_per_batch=limits.batch_requests,
                use_async_batching=False,
                cpu_offload_space=choices.offload_gib(loaded, limits),
                use_cuda_graph=choices.graph_rows(loaded, limits) > 0,
                q_padding_interval_size=GRAPH_ROWS,
                # A graph for each; of more, and so finer, sizes each step would read less padding.
                kv_padding_interval_size=max(_LEAST_GRAPH_KEYS, limits.cache_tokens // _GRAPH_SIZES),
                return_logprobs=True,
                cpu_group_timeout=None,  # processes that share a model may take very different times to load it
            ),
        )
        self._tile, most = choices.row_tiles(loaded, limits)
        self.continuous_batching_config.max_batch_tokens = min(limits.max_batch_tokens, most)
        self.output_router = Router(runs)
        self.batch_processor = (
            self._create_shared() if loaded.processes > 1 else self._create_batch_processor()
        )
        if self.model.config._attn_implementation == eager_attention.NAME:  # noqa: SLF001
            # For packed forwards alone; scoring, recording and the trial's ordinary forwards need the model's own.
            self.model.set_attn_implementation("eager")

    def _create_shared(self) -> ContinuousBatchProcessor:
        """The processor of a model that several processes share; it never talks to the others afterwards."""
        sharded = splits_key_heads(self.model.tp_plan)
        # The library looks for two names in the plan, whatever it says of them.
        self.distributed_helper.are_kv_heads_tp_ed = lambda: sharded
        processor = self._create_batch_processor()
        self.distributed_helper.destroy_cpu_comm_group()
        self.distributed_helper = DistributedHelper(device_mesh=None, cpu_group_timeout=None)
        processor.distributed_helper = self.distributed_helper
        return processor

    def switch_to_cb_friendly_attn(self, model: Any, auto_switch_to_flash: bool = True) -> None:
        """Keeps requests apart: torch's kernel on CUDA where it serves the model, else ours in place of `sdpa`."""
        if cuda_attention.unsupported_reason(self._loaded) is None:
            cuda_attention.register()
            model.set_attn_implementation(cuda_attention.NAME)
            return
        if model.config._attn_implementation in ("sdpa", attention.NAME):  # noqa: SLF001
            attention.register()
            model.set_attn_implementation(attention.NAME)
        else:
            eager_attention.register()
            super().switch_to_cb_friendly_attn(model, auto_switch_to_flash)

    def start(self) -> None:
        """Starts the thread."""
        # A daemon thread: a program that forgets to close its engine still ends.
        self.background_thread_status.clear()
        self._generation_thread = threading.Thread(
            target=self._run_generation_loop, name="steering-engine", daemon=True
        )
        self._generation_thread.start()

    def _create_batch_processor(self) -> ContinuousBatchProcessor:
        processor = super()._create_batch_processor()
        if isinstance(processor.model_runner, Runner):  # the library asks again when the thread begins
            return processor
        cache = processor.cache
        cache.__class__ = SaltedCache  # adds no state of its own but the runs
        cache.runs, cache.followers = self._runs, self._followers
        runner = Runner(
            logit_processor=processor.logit_processor,
            cb_config=processor.cb_config,
            cache=cache,
            inputs_and_outputs=processor.inputs_and_outputs,
            do_sample=True,
            return_logprobs=True,
        )
        runner.hooks, runner.runs, runner.eos_ids = self._hooks, [], self._eos_ids
        runner.followers = self._followers
        runner.implementation = self.model.config._attn_implementation  # noqa: SLF001
        runner.tile = self._tile
        runner.activations = AlignedActivations(self.model)
        runner.graph_rows = choices.graph_rows(self._loaded, self._limits)
        runner.decisions, runner.uploaded = BatchDecisions(), None
        runner.resident, runner.static_scores = None, None
        if runner.graph_rows:
            device = cache.device
            blocks = self.model.config.get_text_config().num_hidden_layers
            runner.resident = ResidentPlan(blocks, cache.max_batch_tokens, device)
            head = self.model.get_output_embeddings()
            size = (processor.cb_config.max_requests_per_batch, head.weight.shape[0])
            runner.static_scores = torch.zeros(size, dtype=torch.float32, device=device)
        processor.model_runner = runner
        return processor

    def _handle_critical_error(
        self, error: Exception, batch_processor: ContinuousBatchProcessor | None
    ) -> None:
        loss = self._followers.loss() if self._followers is not None else None
        super()._handle_critical_error(EngineStoppedError(loss) if loss else error, batch_processor)

    def _run_generation_loop(self) -> None:
        super()._run_generation_loop()
        self._departures.close()
        # A hard stop drops requests that it has just taken from the queue, without a word to anybody.
        for run in list(self._runs.values()):
            if not run.done:
                self.output_router.fail(run, self.background_thread_status.fatal_error)

    def _generation_loop_body(self, batch_processor: ContinuousBatchProcessor, bootstrapping: bool) -> bool:
        # After a preemption the library admits nobody until a request finishes. If the last active ones were cancelled
        # instead, nobody ever would be admitted again.
        scheduler = batch_processor.scheduler
        if scheduler.block_new_requests and not scheduler.active_requests:
            scheduler.block_new_requests = False
        departing = self._departures.waiting()
        goes_on: bool = super()._generation_loop_body(batch_processor, bootstrapping)
        # What was cancelled before has been taken note of; and what is still there has a row or waits for one.
        self._departures.settle(departing, (scheduler.active_requests, scheduler.waiting_requests))
        wake_callers(self._runs)
        return goes_on

    @torch.no_grad()
    def try_model(self) -> None:
        """Tries the model and captures its graphs, before the thread starts.

        Raises:
            ModelError: Its blocks can't be steered.
            RuntimeError: Its batches give other logits than ordinary forwards, or a graph can't be captured.
        """
        processor = self.batch_processor
        try_batches(self.model, processor, self._generation_step, self._plain_logits)
        if processor.model_runner.graph_rows:
            capture_graphs(self.model, processor)

    def _plain_logits(self, ids: list[int]) -> torch.Tensor:
        """Logits `[ids, vocab]` by an ordinary forward."""
        if self._followers is not None:
            self._followers.send(PlainForward(ids))
        rows = torch.tensor([ids], device=self.model.device)
        logits: torch.Tensor = self.model(rows, use_cache=False).logits[0]
        return logits

    @torch.no_grad()
    def repeat(self, message: Message) -> None:
        """Does what the driver does, in a follower."""
        processor = self.batch_processor
        if isinstance(message, PlainForward):
            self._plain_logits(message.ids)
        elif isinstance(message, CopyPages):
            processor.cache.perform_cache_copy(message.pages)
        else:
            inputs, runner = processor.inputs_and_outputs, processor.model_runner
            self._hooks.table.follow(message.rows)
            set_sizes(inputs, message.sizes)
            share_tensors(inputs)
            if inputs.compute_stream is not None:
                inputs.compute_stream.wait_stream(torch.accelerator.current_stream())
            batch_data = inputs.get_model_kwargs(use_padding=runner.pad_inputs)
            runner.forward(self.model, batch_data, message.plan, message.layout)
            inputs.retrieve_device_outputs()

    def lose(self, reason: str) -> None:
        """Ends everything because a process of a shared model has ended; callable from any thread."""
        for run in list(self._runs.values()):
            if not run.done:
                self.output_router.fail(run, reason)
        self.background_thread_status.record_fatal_error(EngineStoppedError(reason))
        self.background_thread_status.request_stop(BackgroundThreadStatus.HARD_STOP, 0)

    def enqueue(self, family: Sequence[Run]) -> None:
        """Hands runs that share the computation of their prompt to the thread; their keys are those of `child_key`.

        Raises:
            EngineStoppedError: The thread has stopped or is about to.
        """
        self.input_queue.put(State.of(family, self._eos_ids))
        # Asked after the put: a thread that stops says so first and empties the queue then.
        refusal = self.background_thread_status.can_accept_new_requests()
        if refusal is not None:
            raise EngineStoppedError(refusal)
        self._wake_up_loop.set()

    def cancel(self, run: Run, family: Sequence[Run]) -> None:
        """Frees the row and the pages of a run that is done without having finished."""
        first = family[0]
        # The others depend on the first one until its first token; if it is not wanted itself, it ends with that token.
        if run is not first or run.step > 0:
            self.cancel_request(run.key)
        if all(one.done for one in family):
            self.cancel_request(first.key)

    def when_gone(self, keys: Sequence[str], then: Callable[[], None]) -> None:
        """Calls back when the thread is done with requests that have ended or been cancelled; from any thread."""
        if keys and self._departures.add(keys, then):
            self._wake_up_loop.set()
        else:
            then()

    def load(self) -> BatchLoad:
        """What is running and waiting, and how much of the cache is free."""
        processor = self.batch_processor
        if processor is None:  # stopped
            return BatchLoad(0, 0, 0)
        scheduler, cache = processor.scheduler, processor.cache
        kept = sum(len(allocator.ledger.cached_blocks) for allocator in cache.cache_allocators.values())
        return BatchLoad(
            active_requests=len(scheduler.active_requests),
            waiting_requests=len(scheduler.waiting_requests) + self.input_queue.qsize(),
            free_cache_tokens=round((cache.compute_free_capacity() * cache.num_blocks + kept) * PAGE_TOKENS),
        )

    def failure(self) -> str | None:
        """Why the thread takes nothing more; None while it does."""
        if (error := self.background_thread_status.fatal_error) is not None:
            return one_line(error)
        return None if self.is_running() else "the engine was closed"

    def end(self) -> None:
        """Stops the thread at once; every run that is not done fails with EngineStoppedError."""
        self.output_router.closing = True
        if self.is_running():
            # A thread that waits for devices of lost processes may never end.
            limit = None if self._followers is None else _END_SECONDS
            self.stop(block=True, timeout=limit, hard_stop=True)
