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
- `RequestState.num_children` and the ids that `ContinuousBatchProcessor.update_batch` gives to copies of a request: the
  prompt of several completions is computed once. `child_key` is such an id.
- `Scheduler.block_new_requests`: stays set when the last active request is cancelled after a preemption.
- `OutputRouter.deliver`: where failures of requests arrive.
- `PagedAttentionCache.search_prefix_match` and `.mark_complete_blocks`: the two doors of prefix sharing. Both hash
  token ids; they are handed salted ids from the first page that a request may steer.
- `PagedAttentionCache.layer_to_allocator`, `CacheAllocator.update`, which writes without reading when it is given
  nothing to read, and, where it `supports_block_table`, `get_cache_for_block_table`: keys are read where they are.
- The names of a batch's rows (`input_ids`, `position_ids`, `logits_indices`): made up to whole tiles where rows have to
  have the same bits in any batch, and `config._experts_implementation`, switched for such forwards.
- `BlockLedger.cached_blocks`: pages that nobody uses and that are only kept for sharing.

The engine runs synchronously (no double buffering), so a context trigger sees every token before the next step.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch.nn.functional import cosine_similarity, pad
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.continuous_api import (
    ContinuousBatchingManager,
    ContinuousBatchProcessor,
    OutputRouter,
)
from transformers.generation.continuous_batching.model_runner import ModelRunner
from transformers.generation.continuous_batching.requests import (
    GenerationOutput,
    RequestState,
    RequestStatus,
)
from transformers.generation.continuous_batching.utils import stream_context

from steering_engine.blocks import SteeringHooks
from steering_engine.engine import attention, cuda_attention, stable_experts
from steering_engine.engine.limits import PAGE_TOKENS, EngineLimits
from steering_engine.engine.run import Run
from steering_engine.engine.salt import salted_ids
from steering_engine.engine.sampler import sample_batch
from steering_engine.engine.stability import AlignedActivations, row_tile, unstable_reason
from steering_engine.errors import EngineStoppedError, ModelError
from steering_engine.loading import LoadedModel
from steering_engine.steering.batch import BatchDecisions
from steering_engine.steering.forward import ForwardPlan, upload
from steering_engine.steering.resident import ResidentPlan
from steering_spec import Token

# Short enough for one cache page each, so that the trial fits into any cache and leaves nothing to share in it.
_TRIAL_PROMPTS = (3, 11)
_TRIAL_TOKENS = 3
_PAGED_EAGER = "paged|eager"
_GRAPH_ROWS = 64  # graphs are captured for multiples of this many rows
_GRAPH_SIZES = 4  # and for this many sizes of what they read of the cache
_LEAST_GRAPH_KEYS = 2048
_TRIAL_TOLERANCE = {True: 1e-5, False: 3e-2}  # by whether the model runs in float32; BLOOM differs by 1e-4


class _Family(dict[str, Run]):
    """The runs that share a prompt, by key. The library copies states deeply; runs are what they are."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Family:
        return self


class _State(RequestState):  # type: ignore[misc]  # the library has no types
    """The library's state of a request, tied to our `Run`.

    The library makes the states of completions that share a prompt out of the first one's: it copies it, or begins an
    equal one anew, and then gives the new state its id. So a state finds its run by its id.
    """

    family: _Family
    eos_ids: frozenset[int]

    @classmethod
    def of(cls, family: Sequence[Run], eos_ids: frozenset[int]) -> _State:
        request = family[0].request
        state = cls(
            request_id=family[0].key,
            initial_tokens=list(request.prompt_ids),
            max_new_tokens=request.sampling.max_tokens,
            eos_token_id=sorted(eos_ids) if request.sampling.stop_at_eos else -1,
            num_children=family[0].copies,
        )
        state.family = _Family((run.key, run) for run in family)
        state.eos_ids = eos_ids if request.sampling.stop_at_eos else frozenset()
        return state

    @property
    def run(self) -> Run:
        return self.family[self.request_id]

    def update_and_check_completion(self, token_id: int, logprob: float | None) -> bool:
        finished: bool = super().update_and_check_completion(token_id, None)
        # Of a run that failed there was nothing to sample, and the id means nothing. One that was cancelled before the
        # library knew its id would otherwise go on for ever.
        if self.run.failed or self.run.cancelled:
            self.status = RequestStatus.FINISHED
            return True
        token = Token(token_id, logprob or 0.0, self.run.alternatives)
        if self.run.accept(token, token_id in self.eos_ids) and not finished:
            self.status = RequestStatus.FINISHED
            finished = True
        return finished

    def create_equivalent_initial_request(self) -> _State:
        # The library preempts a request by starting it again with its tokens as the prompt.
        state = super().create_equivalent_initial_request()
        state.__class__ = _State
        state.family, state.eos_ids = self.family, self.eos_ids
        return state  # type: ignore[no-any-return]


class _SaltedCache(PagedAttentionCache):  # type: ignore[misc]
    """The paged cache, with pages shared only between requests that steer them alike, and keys read in place."""

    runs: dict[str, Run]

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
        run = state.run if isinstance(state, _State) else None
        if (
            run is None
            or run.request.plan is None
            or not complete_blocks
            or state.status == RequestStatus.FINISHED
        ):
            super().mark_complete_blocks(state, complete_blocks)
            return
        tokens = state.initial_tokens + state.generated_tokens
        ids = salted_ids(tokens, run.request.plan, PAGE_TOKENS, run.marks)
        for name, count in complete_blocks.items():
            self.cache_allocators[name].mark_complete_blocks(state.request_id, ids, count)


class _Runner(ModelRunner):  # type: ignore[misc]
    """Runs a batch: puts its steering plan before the hooks, and samples."""

    hooks: SteeringHooks
    runs: list[Run]
    eos_ids: frozenset[int]
    implementation: str
    tile: int
    activations: AlignedActivations
    decisions: BatchDecisions
    forward: ForwardPlan | None
    resident: ResidentPlan | None
    graph_rows: int
    static_scores: torch.Tensor | None
    scores: torch.Tensor

    def compute_batch(self, model: torch.nn.Module, batch_data: dict[str, Any]) -> None:
        decisions = BatchDecisions()
        self.runs = []
        steered: list[tuple[Run, int]] = []
        offset = 0
        counts, ends = [], []
        for future in self.inputs_and_outputs.requests_in_batch:
            state = future.state
            counts.append(future.query_length)
            ends.append(state.position_offset)
            if isinstance(state, _State):
                # The library has already advanced the position over the rows of this batch.
                start = state.position_offset - future.query_length
                if state.run.request.plan is not None:
                    state.run.plan_rows(decisions, offset, start, state.position_offset)
                    steered.append((state.run, state.position_offset))
                if future.has_new_token:
                    self.runs.append(state.run)
            offset += future.query_length
        layout = attention.PackedLayout(tuple(counts), tuple(ends), self.tile)
        if self.tile:
            for name in ("input_ids", "position_ids", "logits_indices"):
                rows = batch_data[name]
                batch_data[name] = pad(rows, (0, -rows.shape[-1] % self.tile))
        with stream_context(self.inputs_and_outputs.compute_stream):
            forward = self._loaded(decisions)
            if self.graph_rows:
                # Only a bound for the kernel; a graph for each of its values would be a graph for nothing.
                longest = self.cache.max_tokens_read
                for lengths in (batch_data["max_length_k"], self.inputs_and_outputs.max_length_k):
                    lengths.update(dict.fromkeys(lengths, longest))
            self.hooks.plan = forward
            try:
                with attention.packed_forward(model, self.implementation, layout), self._stable(model):
                    super().compute_batch(model, batch_data)
            finally:
                self.hooks.plan = None
            answers = forward.answers() if forward is not None else {}
            for run, stop in steered:
                run.rows_done(stop, answers.get(run.key, {}))
            self._draw()

    def _loaded(self, decisions: BatchDecisions) -> ForwardPlan | ResidentPlan | None:
        """What they do, on the device; a captured graph looks at its buffers even if there is nothing in them."""
        if not decisions.repeat(self.decisions):
            if self.resident is not None:
                self.resident.load(decisions.plan())
            else:
                self.forward = upload(decisions.plan(), self.cache.device) if decisions else None
            self.decisions = decisions
        return self.resident or self.forward

    def _get_forward_fn(self, use_block_table: bool) -> tuple[Any, bool]:
        # Prefill is bound by arithmetic, gains nothing from a graph, and would need one for every size.
        forward, graph = super()._get_forward_fn(use_block_table)
        return forward, graph and self.inputs_and_outputs.num_q_tokens <= self.graph_rows

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


def child_key(key: str, number: int) -> str:
    """The key of a run that begins as the copy of the one with the given key, once its prompt is computed."""
    return f"{key}__child#{number}"


class BatchLoad(NamedTuple):
    """The load of a batch manager; pages that are only kept for sharing count as free."""

    active_requests: int
    waiting_requests: int
    free_cache_tokens: int


class BatchManager(ContinuousBatchingManager):  # type: ignore[misc]
    """The library's manager with our runner, cache and router in it, and the doors that the engine uses.

    Making one tries the model, and raises RuntimeError when batches give other logits than ordinary forwards.
    """

    def __init__(
        self, loaded: LoadedModel, hooks: SteeringHooks, runs: dict[str, Run], limits: EngineLimits
    ) -> None:
        stable_experts.register()
        self._hooks = hooks
        self._runs = runs
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
                cpu_offload_space=self._offload_gib(),
                use_cuda_graph=self._graph_rows() > 0,
                q_padding_interval_size=_GRAPH_ROWS,
                # A graph for each; of more, and so finer, sizes each step would read less padding.
                kv_padding_interval_size=max(_LEAST_GRAPH_KEYS, limits.cache_tokens // _GRAPH_SIZES),
                return_logprobs=True,
            ),
        )
        self.output_router = _Router(runs)
        self.batch_processor = self._create_batch_processor()
        if self.model.config._attn_implementation == _PAGED_EAGER:  # noqa: SLF001
            # For packed forwards alone; scoring, recording and the trial's ordinary forwards need the model's own.
            self.model.set_attn_implementation("eager")
        self._try_model()
        self._capture_graphs()

    def _offload_gib(self) -> float:
        """Memory of the host for cached rows.

        Raises:
            ModelError: It is asked for where the cache is in that memory already.
        """
        asked = self._limits.offload_gib
        if asked and self._loaded.device.type != "cuda":
            raise ModelError(
                "offload_gib needs a CUDA device; elsewhere the cache is in the host's memory already"
            )
        return asked

    def _graph_rows(self) -> int:
        """Rows of the largest forward that runs as a captured graph; 0 when none does.

        Raises:
            ModelError: Graphs are asked for and can't be had.
        """
        wanted = self._limits.cuda_graphs
        if wanted is False:
            return 0
        reason = cuda_attention.unsupported_reason(self._loaded)
        if reason is None and find_spec("triton") is None:
            reason = "Triton is not installed"
        if reason is None:
            rows = min(self._limits.max_concurrent_requests, self._limits.max_batch_tokens)
            return -(-rows // _GRAPH_ROWS) * _GRAPH_ROWS
        if wanted:
            raise ModelError(f"{type(self._loaded.model).__name__} can't be run in CUDA graphs: {reason}")
        return 0

    def switch_to_cb_friendly_attn(self, model: Any, auto_switch_to_flash: bool = True) -> None:
        """Per-request attention on a CPU and, where its kernel serves the model, on CUDA; else the library's choice."""
        if cuda_attention.unsupported_reason(self._loaded) is None:
            cuda_attention.register()
            model.set_attn_implementation(cuda_attention.NAME)
            return
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
        cache.runs = self._runs
        runner = _Runner(
            logit_processor=processor.logit_processor,
            cb_config=processor.cb_config,
            cache=cache,
            inputs_and_outputs=processor.inputs_and_outputs,
            do_sample=True,
            return_logprobs=True,
        )
        runner.hooks, runner.runs, runner.eos_ids = self._hooks, [], self._eos_ids
        runner.implementation = self.model.config._attn_implementation  # noqa: SLF001
        runner.tile = self._tile()
        runner.activations = AlignedActivations(self.model)
        runner.graph_rows = self._graph_rows()
        runner.decisions, runner.forward = BatchDecisions(), None
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
    def _try_model(self) -> None:
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
            for name, scores in zip(names, processor.model_runner.scores, strict=False):
                ids = torch.tensor([histories[name]], device=self.model.device)
                ordinary = self.model(ids, use_cache=False).logits[0, -1]
                likeness = cosine_similarity(scores.double(), ordinary.double(), dim=0).item()
                if not likeness > 1 - _TRIAL_TOLERANCE[self.model.dtype == torch.float32]:
                    raise RuntimeError(
                        f"its logits differ from an ordinary forward's (cosine {likeness:.6f})"
                    )
                histories[name].append(0)
            processor.update_batch()

    @torch.no_grad()
    def _capture_graphs(self) -> None:
        """Captures every graph that decoding can need, so that no request ever waits for one.

        Raises:
            RuntimeError: A graph could not be captured.
        """
        processor = self.batch_processor
        runner, inputs = processor.model_runner, processor.inputs_and_outputs
        if not runner.graph_rows:
            return
        keys = processor.cb_config.kv_padding_interval_size
        lengths = [0, *range(keys, processor.cache.max_tokens_read + keys, keys)]
        for rows in range(_GRAPH_ROWS, runner.graph_rows + 1, _GRAPH_ROWS):
            for length in lengths:
                runner.run_one_warmup(self.model, rows, min(length, processor.cache.max_tokens_read))
                if inputs.get_graph() is None:
                    raise RuntimeError(
                        f"the graph of {rows} rows and {length} cached tokens can't be captured"
                    )
        processor.cache.reset()

    def enqueue(self, family: Sequence[Run]) -> None:
        """Hands runs that share the computation of their prompt to the thread; their keys are those of `child_key`.

        Raises:
            EngineStoppedError: The thread has stopped or is about to.
        """
        self.input_queue.put(_State.of(family, self._eos_ids))
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
            self.stop(block=True, hard_stop=True)

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
