"""transformers' continuous batching with our steering, sampling and cache salts put in at its seams.

Everything that touches the library's non-public parts is in this module, and tests/unit/test_seams.py fails with one
sentence when an upgrade moves one of them. The seams:

- `ContinuousBatchingManager._create_batch_processor`: where our model runner and salted cache are put in.
- `ContinuousBatchingManager._run_generation_loop` and `._generation_loop_body`: after each step callers are woken, and
  when the thread ends nobody is left waiting.
- `ContinuousBatchingManager.switch_to_cb_friendly_attn`: where the CPU gets its own attention.
- `ContinuousBatchProcessor.prepare_next_batch`, `._generation_step`, `.update_batch`: the steps of the model's trial.
- `ModelRunner.compute_batch`: which rows of which request a forward holds, known before it runs.
- `ModelRunner._sample`: our sampler in place of the library's, with random numbers that belong to each request.
- `RequestState.update_and_check_completion`: every accepted token, and the decision that a request is finished.
- `RequestState.create_equivalent_initial_request`: how a request goes on after it had to give up its pages.
- `Scheduler.block_new_requests`: stays set when the last active request is cancelled after a preemption.
- `OutputRouter.deliver`: where failures of requests arrive.
- `PagedAttentionCache.search_prefix_match` and `.mark_complete_blocks`: the two doors of prefix sharing. Both hash
  token ids; they are handed salted ids from the first page that a request may steer.
- The names of a batch's rows (`input_ids`, `position_ids`, `logits_indices`): made up to whole tiles where rows have to
  have the same bits in any batch, and `config._experts_implementation`, switched for such forwards.
- `ContinuousBatchingManager.distributed_helper`: processes that share a model make their caches together; from then on
  the library knows of one alone, and the driver tells its followers what it does: `ModelRunner.compute_batch` and
  `PagedAttentionCache.perform_cache_copy`. `ContinuousBatchingManager._handle_critical_error` names a lost process.
- `BlockLedger.cached_blocks`: pages that nobody uses and that are only kept for sharing.

The engine runs synchronously (no double buffering), so a context trigger sees every token before the next step.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch.nn.functional import cosine_similarity, pad
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.continuous_api import (
    BackgroundThreadStatus,
    ContinuousBatchingManager,
    ContinuousBatchProcessor,
    OutputRouter,
)
from transformers.generation.continuous_batching.distributed import DistributedHelper
from transformers.generation.continuous_batching.model_runner import ModelRunner
from transformers.generation.continuous_batching.requests import (
    GenerationOutput,
    RequestState,
    RequestStatus,
)

from steering_engine.blocks import SteeringHooks
from steering_engine.engine import attention, sampling, stable_experts
from steering_engine.engine.library_inputs import set_sizes, share_tensors
from steering_engine.engine.limits import PAGE_TOKENS, EngineLimits
from steering_engine.engine.messages import CopyPages, Message, PlainForward
from steering_engine.engine.run import Run
from steering_engine.engine.salt import salted_ids
from steering_engine.engine.stability import AlignedActivations, row_tile, unstable_reason
from steering_engine.engine.tensor_parallel import Followers
from steering_engine.errors import EngineStoppedError, ModelError, NotFiniteError
from steering_engine.loading import LoadedModel
from steering_engine.sharding import splits_key_heads
from steering_engine.steering.plan import BatchPlan
from steering_spec import Token

# Short enough for one cache page each, so that the trial fits into any cache and leaves nothing to share in it.
_TRIAL_PROMPTS = (3, 11)
_TRIAL_TOKENS = 3
_PAGED_EAGER = "paged|eager"
_END_SECONDS = 30.0
_TRIAL_TOLERANCE = {True: 1e-5, False: 3e-2}  # by whether the model runs in float32; BLOOM differs by 1e-4


class _State(RequestState):  # type: ignore[misc]  # the library has no types
    """The library's state of a request, tied to our `Run`."""

    run: Run
    eos_ids: frozenset[int]

    @classmethod
    def of(cls, run: Run, eos_ids: frozenset[int]) -> _State:
        request = run.request
        state = cls(
            request_id=run.key,
            initial_tokens=list(request.prompt_ids),
            max_new_tokens=request.sampling.max_tokens,
            eos_token_id=sorted(eos_ids) if request.sampling.stop_at_eos else -1,
        )
        state.run, state.eos_ids = run, eos_ids if request.sampling.stop_at_eos else frozenset()
        return state

    def update_and_check_completion(self, token_id: int, logprob: float | None) -> bool:
        finished: bool = super().update_and_check_completion(token_id, None)
        if self.run.failed:  # there was nothing to sample; the id means nothing
            self.status = RequestStatus.FINISHED
            return True
        if self.run.accept(Token(token_id, logprob or 0.0), token_id in self.eos_ids) and not finished:
            self.status = RequestStatus.FINISHED
            finished = True
        return finished

    def create_equivalent_initial_request(self) -> _State:
        # The library preempts a request by starting it again with its tokens as the prompt.
        state = super().create_equivalent_initial_request()
        state.__class__ = _State
        state.run, state.eos_ids = self.run, self.eos_ids
        return state  # type: ignore[no-any-return]


class _SaltedCache(PagedAttentionCache):  # type: ignore[misc]
    """The paged cache, with pages shared only between requests that steer them alike."""

    runs: dict[str, Run]
    followers: Followers | None

    def perform_cache_copy(self, copy_src_and_dst: dict[str, tuple[list[int], list[int]]]) -> None:
        if self.followers is not None:
            self.followers.send(CopyPages(copy_src_and_dst))
        super().perform_cache_copy(copy_src_and_dst)

    def search_prefix_match(self, request_id: str, prompt_ids: list[int]) -> int:
        run = self.runs.get(request_id)
        if run is None:  # already cancelled; its steering is unknown here, so nothing may be shared
            return 0
        ids = salted_ids(prompt_ids, run.request.plan, PAGE_TOKENS)
        matched: int = super().search_prefix_match(request_id, ids)
        return matched

    def mark_complete_blocks(self, state: RequestState, complete_blocks: dict[str, int]) -> None:
        plan = state.run.request.plan if isinstance(state, _State) else None
        if plan is None or not complete_blocks or state.status == RequestStatus.FINISHED:
            super().mark_complete_blocks(state, complete_blocks)
            return
        ids = salted_ids(state.initial_tokens + state.generated_tokens, plan, PAGE_TOKENS)
        for name, count in complete_blocks.items():
            self.cache_allocators[name].mark_complete_blocks(state.request_id, ids, count)


class _Runner(ModelRunner):  # type: ignore[misc]
    """Runs a batch: puts its steering plan before the hooks, and samples."""

    hooks: SteeringHooks
    runs: list[Run]
    followers: Followers | None
    implementation: str
    tile: int
    activations: AlignedActivations
    trial_scores: torch.Tensor

    def compute_batch(self, model: torch.nn.Module, batch_data: dict[str, Any]) -> None:
        plan = BatchPlan()
        self.runs = []
        offset = 0
        ends = []
        for future in self.inputs_and_outputs.requests_in_batch:
            state = future.state
            ends.append(state.position_offset)
            if isinstance(state, _State):
                # The library has already advanced the position over the rows of this batch.
                start = state.position_offset - future.query_length
                for act in state.run.acts(start, state.position_offset):
                    plan.add(offset + act.row - start, act)
                if future.has_new_token:
                    self.runs.append(state.run)
            offset += future.query_length
        layout = attention.PackedLayout(offset, tuple(ends), self.tile)
        if self.followers is not None:
            self.followers.forward(plan, layout, self.inputs_and_outputs, self.hooks.table)
        self.forward(model, batch_data, plan, layout)

    def forward(
        self,
        model: torch.nn.Module,
        batch_data: dict[str, Any],
        plan: BatchPlan,
        layout: attention.PackedLayout,
    ) -> None:
        self.hooks.plan = plan
        if self.tile:
            for name in ("input_ids", "position_ids", "logits_indices"):
                rows = batch_data[name]
                batch_data[name] = pad(rows, (0, -rows.shape[-1] % self.tile))
        try:
            with attention.packed_forward(model, self.implementation, layout), self._stable(model):
                super().compute_batch(model, batch_data)
        finally:
            self.hooks.plan = None

    @contextmanager
    def _stable(self, model: Any) -> Iterator[None]:
        """Keeps what is neither product nor attention independent of the batch, where that is promised."""
        if not self.tile:
            yield
            return
        with self.activations, stable_experts.whole_tiles(model.config.get_text_config()):
            yield

    def _sample(self, scores: torch.Tensor, output_ids: torch.Tensor) -> None:
        count = len(self.runs)
        if count == 0:  # rows of the trial, or none that predicts a token
            self.trial_scores = scores[0]
            return
        device = scores.device
        settings = [run.request.sampling for run in self.runs]
        temperature = torch.tensor([s.temperature for s in settings], device=device)
        probabilities = sampling.token_probabilities(
            scores[0, :count],
            temperature,
            torch.tensor([s.top_k for s in settings], device=device),
            torch.tensor([s.top_p for s in settings], device=device),
            torch.tensor([s.min_p for s in settings], device=device),
        )
        for row, run in enumerate(self.runs):
            if run.request.banned_first_ids and run.step == 0:
                banned = torch.tensor(run.request.banned_first_ids, device=device)
                probabilities[row] = sampling.ban(probabilities[row], banned)
        self._fail_rows_without_distribution(probabilities)
        uniforms = torch.tensor([run.uniform() for run in self.runs], dtype=torch.float64, device=device)
        ids, logprobs = sampling.draw(probabilities, temperature, uniforms)
        output_ids[0, :count].copy_(ids)
        # The library carries log-probabilities as the bits of a float32 in an int32 tensor.
        output_ids[1, :count].copy_(logprobs.view(torch.int32))

    def _fail_rows_without_distribution(self, probabilities: torch.Tensor) -> None:
        # An id out of range would end the engine for everybody, so such rows get any distribution at all.
        broken = ~torch.isfinite(probabilities.sum(-1))
        for row in broken.nonzero().flatten().tolist():
            run = self.runs[row]
            cause = "; its steering is too strong" if run.steered_rows else ""
            run.fail(NotFiniteError(f"the logits of token {run.step} are not finite{cause}"))
            probabilities[row] = 1.0 / probabilities.shape[-1]


class _Router(OutputRouter):  # type: ignore[misc]
    """Takes the library's results. Tokens have reached their runs already; only failures are news."""

    def __init__(self, runs: dict[str, Run]) -> None:
        super().__init__()
        self._runs = runs
        self.closing = False

    def deliver(self, output: GenerationOutput) -> None:
        run = self._runs.get(output.request_id)
        if run is not None and output.error is not None:
            self.fail(run, output.error)

    def fail(self, run: Run, error: object) -> None:
        run.fail(
            EngineStoppedError("the engine was closed" if self.closing else f"the engine failed: {error}")
        )

    def deliver_batch(self, outputs: list[GenerationOutput]) -> None:
        for output in outputs:
            self.deliver(output)


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
        stable_experts.register()
        self._hooks = hooks
        self._runs = runs
        self._followers = followers
        self._eos_ids = _eos_ids(loaded)
        self._loaded = loaded
        self._limits = limits
        super().__init__(
            model=loaded.model,
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=PAGE_TOKENS,
                num_blocks=-(-limits.cache_tokens // PAGE_TOKENS),
                max_batch_tokens=limits.max_batch_tokens,
                max_requests_per_batch=min(limits.max_concurrent_requests, limits.max_batch_tokens),
                use_async_batching=False,
                use_cuda_graph=False,
                return_logprobs=True,
                cpu_group_timeout=None,  # processes that share a model may take very different times to load it
            ),
        )
        self.output_router = _Router(runs)
        self.batch_processor = (
            self._create_shared() if loaded.processes > 1 else self._create_batch_processor()
        )
        if self.model.config._attn_implementation == _PAGED_EAGER:  # noqa: SLF001
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
        """Per-request attention on a CPU; elsewhere what the library chooses."""
        if model.device.type == "cpu" and model.config._attn_implementation in ("sdpa", attention.NAME):  # noqa: SLF001
            attention.register()
            model.set_attn_implementation(attention.NAME)
        else:
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
        if isinstance(processor.model_runner, _Runner):  # the library asks again when the thread begins
            return processor
        cache = processor.cache
        cache.__class__ = _SaltedCache  # adds no state of its own but the runs
        cache.runs, cache.followers = self._runs, self._followers
        runner = _Runner(
            logit_processor=processor.logit_processor,
            cb_config=processor.cb_config,
            cache=cache,
            inputs_and_outputs=processor.inputs_and_outputs,
            do_sample=True,
            return_logprobs=True,
        )
        runner.hooks, runner.runs, runner.followers = self._hooks, [], self._followers
        runner.implementation = self.model.config._attn_implementation  # noqa: SLF001
        runner.tile = self._tile()
        runner.activations = AlignedActivations(self.model)
        processor.model_runner = runner
        return processor

    def _tile(self) -> int:
        """Rows that a forward's rows come in multiples of, so that each has the same bits in any batch; 0: any number.

        Raises:
            ModelError: That is asked for and can't be done.
        """
        if self._limits.deterministic is False:
            return 0
        reason = unstable_reason(self._loaded)
        tile = None if reason else row_tile(self._loaded)
        if tile is None and self._limits.deterministic:
            reason = (
                reason or "products on this machine depend on the batch, whatever its rows are made up to"
            )
            raise ModelError(f"{type(self.model).__name__} can't be run deterministically: {reason}")
        return tile or 0

    def _handle_critical_error(
        self, error: Exception, batch_processor: ContinuousBatchProcessor | None
    ) -> None:
        loss = self._followers.loss() if self._followers is not None else None
        super()._handle_critical_error(EngineStoppedError(loss) if loss else error, batch_processor)

    def _run_generation_loop(self) -> None:
        super()._run_generation_loop()
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
        goes_on: bool = super()._generation_loop_body(batch_processor, bootstrapping)
        self.wake_callers()
        return goes_on

    @torch.no_grad()
    def try_model(self) -> None:
        """Compares forwards of a batch with ordinary ones, before the thread runs.

        Some architectures do their attention on their own, without asking which rows belong to which request. Their
        batches end in an error or, worse, in other tokens (StableLM, BLOOM).

        Raises:
            RuntimeError: They differ.
        """
        processor = self.batch_processor
        histories: dict[str, list[int]] = {}
        for length in _TRIAL_PROMPTS:
            name = f"trial {length}"
            prompt = [
                token % self.model.config.get_text_config().vocab_size for token in range(length, 2 * length)
            ]
            processor.scheduler.add_waiting_request(RequestState(name, prompt, max_new_tokens=_TRIAL_TOKENS))
            histories[name] = prompt
        while processor.prepare_next_batch():
            futures = processor.inputs_and_outputs.requests_in_batch
            processor.inputs_and_outputs.output_ids.zero_()  # the trial's tokens are all 0
            self._generation_step()
            names = [future.state.request_id for future in futures if future.has_new_token]
            for name, scores in zip(names, processor.model_runner.trial_scores, strict=False):
                ordinary = self._plain_logits(histories[name])
                likeness = cosine_similarity(scores.double(), ordinary.double(), dim=0).item()
                if not likeness > 1 - _TRIAL_TOLERANCE[self.model.dtype == torch.float32]:
                    raise RuntimeError(
                        f"its logits differ from an ordinary forward's (cosine {likeness:.6f})"
                    )
                histories[name].append(0)
            processor.update_batch()

    def _plain_logits(self, ids: list[int]) -> torch.Tensor:
        """Logits `[vocab]` of the token after `ids`, by an ordinary forward."""
        if self._followers is not None:
            self._followers.send(PlainForward(ids))
        rows = torch.tensor([ids], device=self.model.device)
        logits: torch.Tensor = self.model(rows, use_cache=False).logits[0, -1]
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

    def enqueue(self, run: Run) -> None:
        """Hands a run to the thread.

        Raises:
            EngineStoppedError: The thread has stopped or is about to.
        """
        self.input_queue.put(_State.of(run, self._eos_ids))
        # Asked after the put: a thread that stops says so first and empties the queue then.
        refusal = self.background_thread_status.can_accept_new_requests()
        if refusal is not None:
            raise EngineStoppedError(refusal)
        self._wake_up_loop.set()

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

    def end(self) -> None:
        """Stops the thread at once; every run that is not done fails with EngineStoppedError."""
        self.output_router.closing = True
        if self.is_running():
            # A thread that waits for devices of lost processes may never end.
            limit = None if self._followers is None else _END_SECONDS
            self.stop(block=True, timeout=limit, hard_stop=True)

    def wake_callers(self) -> None:
        """Tells callers that something has come: once per event loop and step, not once per token."""
        by_loop: dict[asyncio.AbstractEventLoop, list[Run]] = {}
        for run in list(self._runs.values()):
            if run.done or run.request.streaming:
                by_loop.setdefault(run.loop, []).append(run)
        for loop, runs in by_loop.items():
            with suppress(RuntimeError):  # a loop that has been closed has nobody waiting on it
                loop.call_soon_threadsafe(_set_ready, runs)


def _set_ready(runs: list[Run]) -> None:
    for run in runs:
        run.ready.set()


def _eos_ids(loaded: LoadedModel) -> frozenset[int]:
    """End-of-sequence ids of the generation config and of the tokenizer."""
    configured = getattr(loaded.model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(token_id for token_id in [*ids, loaded.tokenizer.eos_token_id] if token_id is not None)
