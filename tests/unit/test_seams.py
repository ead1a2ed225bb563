"""The private parts of transformers that the engine stands on, as they must be; no model is run.

When an upgrade moves one of them, one test fails with one sentence that says which, and what the engine needs of it.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import Any

import pytest
from transformers import AttentionInterface, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.cache_allocators.cache_allocator import (
    BlockLedger,
    CacheAllocator,
    compute_block_hash,
)
from transformers.generation.continuous_batching.cache_allocators.full_attention import (
    FullAttentionCacheAllocator,
)
from transformers.generation.continuous_batching.continuous_api import (
    BackgroundThreadStatus,
    ContinuousBatchingManager,
    ContinuousBatchProcessor,
    OutputRouter,
)
from transformers.generation.continuous_batching.distributed import DistributedHelper
from transformers.generation.continuous_batching.input_outputs import ContinuousBatchingIOs
from transformers.generation.continuous_batching.model_runner import ModelRunner
from transformers.generation.continuous_batching.requests import (
    FutureRequestState,
    GenerationOutput,
    RequestState,
    RequestStatus,
)
from transformers.generation.continuous_batching.scheduler import Scheduler
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

from steering_engine.engine.library.inputs import SIZES
from tests.support.models import tiny_model

METHODS: list[tuple[Callable[..., Any], list[str]]] = [
    (
        ContinuousBatchingManager.__init__,
        ["self", "model", "generation_config", "continuous_batching_config", "workload_hints"],
    ),
    (ContinuousBatchingManager._create_batch_processor, ["self"]),
    (ContinuousBatchingManager._generation_loop_body, ["self", "batch_processor", "bootstrapping"]),
    (ContinuousBatchingManager._generation_step, ["self"]),
    (ContinuousBatchingManager._handle_critical_error, ["self", "error", "batch_processor"]),
    (ContinuousBatchingManager._run_generation_loop, ["self"]),
    (ContinuousBatchingManager.switch_to_cb_friendly_attn, ["self", "model", "auto_switch_to_flash"]),
    (ContinuousBatchingManager.cancel_request, ["self", "request_id"]),
    (ContinuousBatchingManager.is_running, ["self"]),
    (ContinuousBatchingManager.stop, ["self", "block", "timeout", "keep_for_next_session", "hard_stop"]),
    (ContinuousBatchProcessor.prepare_next_batch, ["self"]),
    (ContinuousBatchProcessor.update_batch, ["self"]),
    (
        ModelRunner.__init__,
        [
            "self",
            "logit_processor",
            "cb_config",
            "inputs_and_outputs",
            "cache",
            "do_sample",
            "return_logprobs",
        ],
    ),
    (ModelRunner.compute_batch, ["self", "model", "batch_data"]),
    (ModelRunner._sample, ["self", "scores", "output_ids"]),
    (RequestState.update_and_check_completion, ["self", "token_id", "logprob"]),
    (RequestState.create_equivalent_initial_request, ["self"]),
    (RequestState.fork, ["self", "new_request_id"]),
    (PagedAttentionCache.search_prefix_match, ["self", "request_id", "prompt_ids"]),
    (PagedAttentionCache.mark_complete_blocks, ["self", "state", "complete_blocks"]),
    (PagedAttentionCache.compute_free_capacity, ["self", "relative"]),
    (PagedAttentionCache.perform_cache_copy, ["self", "copy_src_and_dst"]),
    (PagedAttentionCache.update, ["self", "key_states", "value_states", "layer_idx", "kwargs"]),
    (
        FullAttentionCacheAllocator.update,
        ["self", "key_states", "value_states", "layer_idx", "read_index", "write_index"],
    ),
    (FullAttentionCacheAllocator.get_cache_for_block_table, ["self", "layer_idx"]),
    (CacheAllocator.mark_complete_blocks, ["self", "request_id", "token_ids", "new_new_blocks"]),
    (ContinuousBatchingIOs.get_model_kwargs, ["self", "use_padding"]),
    (ContinuousBatchingIOs.retrieve_device_outputs, ["self"]),
    (DistributedHelper.__init__, ["self", "device_mesh", "cpu_group_timeout", "tp_plan"]),
    (DistributedHelper.are_kv_heads_tp_ed, ["self"]),
    (DistributedHelper.destroy_cpu_comm_group, ["self"]),
    (OutputRouter.deliver, ["self", "output"]),
    (OutputRouter.deliver_batch, ["self", "outputs"]),
    (Scheduler.add_waiting_request, ["self", "state"]),
    (BackgroundThreadStatus.clear, ["self"]),
    (BackgroundThreadStatus.can_accept_new_requests, ["self"]),
    (BackgroundThreadStatus.record_fatal_error, ["self", "error"]),
    (BackgroundThreadStatus.request_stop, ["self", "status", "global_rank"]),
]


@pytest.mark.parametrize(
    ("method", "parameters"), METHODS, ids=[method.__qualname__ for method, _ in METHODS]
)
def test_a_method_that_is_called_or_replaced_has_the_same_parameters(
    method: Callable[..., Any], parameters: list[str]
) -> None:
    found = list(inspect.signature(method).parameters)
    assert found == parameters, f"{method.__qualname__} takes {found}; the engine expects {parameters}"


CALLS: list[tuple[type, str, dict[str, str]]] = [
    (
        ContinuousBatchProcessor,
        "update_batch",
        {
            "state.update_and_check_completion(token, logprob)": "every token reaches its run",
            "self.cache.mark_complete_blocks(state,": "pages are hashed with salted ids",
            "self.output_router.deliver_batch(": "finished requests leave no queue behind",
            'f"{state_to_fork.request_id}__child#{i}"': "the copies of a request find their runs",
            "self.scheduler.active_requests[new_request_id] = state_to_fork.fork(": "copies run as they are",
            "child_state = state_to_fork.create_equivalent_initial_request()": "copies without room begin anew",
            "child_state.request_id = new_request_id": "copies that begin anew find their runs",
        },
    ),
    (RequestState, "fork", {"deepcopy(self)": "a copy has the runs and the end tokens of its request"}),
    (
        Scheduler,
        "_schedule_request",
        {
            "if state.num_children > 0 and token_budget >= len(request_tokens) - 1:": "a request is copied before the "
            "last row of its prompt",
            "token_budget = len(request_tokens) - 1": "at least two rows of a prompt are left when it is to be copied",
        },
    ),
    (
        ContinuousBatchProcessor,
        "_generation_step",
        {"self.model_runner.compute_batch(model, batch_data)": "our runner steers the forward"},
    ),
    (
        ContinuousBatchProcessor,
        "_handle_request_error",
        {"self.output_router.fail_and_deliver(": "failures reach their run"},
    ),
    (
        FullAttentionCacheAllocator,
        "update",
        {"if read_index.numel() == 0:": "new keys are written, and none are copied out of the pages"},
    ),
    (
        ModelRunner,
        "_forward_process_and_sample",
        {"self._sample(scores, output_ids)": "our sampler chooses the tokens"},
    ),
    (
        Scheduler,
        "_infer_request_tokens",
        {"self.cache.search_prefix_match(state.request_id,": "pages are looked up with salted ids"},
    ),
    (
        Scheduler,
        "clear_cancelled_requests",
        {"self.active_requests.pop(request_id": "a cancelled request frees its row"},
    ),
    (
        ContinuousBatchingIOs,
        "prepare_batch_tensors",
        {"state.position_offset += query_length": "positions are advanced before the forward"},
    ),
    (
        ContinuousBatchingIOs,
        "prepare_batch_update",
        {"view(dtype=torch.float32)": "log-probabilities travel as the bits of a float32"},
    ),
    (
        ContinuousBatchingManager,
        "_run_generation_loop",
        {
            "self._create_batch_processor()": "the thread takes the processor that was made",
            "self._generation_loop_body(": "callers are woken after every step",
            "mark_as_stopped()": "a thread that ended accepts nothing",
            "self._handle_critical_error(": "a lost process is named as the reason",
        },
    ),
    (
        ContinuousBatchProcessor,
        "_update_tp_group_state",
        {"self.distributed_helper.tp_all_reduce_state(": "processes that share a model are not asked"},
    ),
    (
        PagedAttentionCache,
        "__init__",
        {"distributed_helper.are_kv_heads_tp_ed()": "the cache holds the heads that the process computes"},
    ),
    (
        ContinuousBatchingManager,
        "_create_batch_processor",
        {"batch_processor.reset()": "a processor that exists is taken again"},
    ),
]


@pytest.mark.parametrize(
    ("owner", "method", "calls"), CALLS, ids=[f"{owner.__name__}.{method}" for owner, method, _ in CALLS]
)
def test_the_library_still_passes_through_the_seam(owner: type, method: str, calls: dict[str, str]) -> None:
    source = inspect.getsource(getattr(owner, method))
    for call, reason in calls.items():
        assert call in source, f"{owner.__name__}.{method} no longer has `{call}`, by which {reason}"


def attributes_set(owner: type) -> set[str]:
    """Attributes that a class sets on itself or declares."""
    source = inspect.getsource(owner)
    words = {part.split(maxsplit=1)[0].rstrip(":,") for part in source.split("self.")[1:] if part.strip()}
    return words | set(getattr(owner, "__annotations__", {})) | set(dir(owner))


ATTRIBUTES: list[tuple[type, list[str]]] = [
    (
        ContinuousBatchingManager,
        [
            "input_queue", "output_router", "batch_processor", "background_thread_status",
            "_wake_up_loop", "_generation_thread", "model", "distributed_helper",
        ],
    ),
    (
        ContinuousBatchProcessor,
        [
            "cache", "scheduler", "model_runner", "inputs_and_outputs", "logit_processor", "cb_config",
            "distributed_helper",
        ],
    ),
    (ModelRunner, ["inputs_and_outputs", "pad_inputs"]),
    (
        ContinuousBatchingIOs,
        [
            "requests_in_batch", "output_ids", "compute_stream",
            *SIZES, "_bulk_input_tensor", "block_table", "write_index_storage", "read_index_storage", "attention_mask",
        ],
    ),
    (PagedAttentionCache, ["cache_allocators", "layer_to_allocator", "num_blocks", "use_prefix_sharing"]),
    (CacheAllocator, ["index", "layer_type", "ledger", "supports_block_table"]),
    (BlockLedger, ["cached_blocks", "hash_to_block"]),
    (Scheduler, ["active_requests", "waiting_requests", "block_new_requests"]),
    (RequestState, ["status", "position_offset", "initial_tokens", "generated_tokens", "request_id", "num_children"]),
    (FutureRequestState, ["state", "has_new_token", "query_length", "complete_blocks"]),
    (GenerationOutput, ["request_id", "error"]),
    (BackgroundThreadStatus, ["fatal_error", "HARD_STOP"]),
]  # fmt: skip


@pytest.mark.parametrize(("owner", "names"), ATTRIBUTES, ids=[owner.__name__ for owner, _ in ATTRIBUTES])
def test_an_attribute_that_is_read_or_set_is_there(owner: type, names: list[str]) -> None:
    missing = [name for name in names if name not in attributes_set(owner)]
    assert not missing, f"{owner.__name__} no longer has {', '.join(missing)}"


def test_a_request_state_is_made_from_ids_and_limits() -> None:
    state = RequestState("mine", [1, 2], max_new_tokens=3, eos_token_id=[7])
    assert state.remaining_prefill_tokens == [1, 2]
    assert (state.status, state.position_offset) == (RequestStatus.PENDING, 0)


def test_a_request_ends_with_an_end_token_or_its_last_token() -> None:
    for tokens, finished in (([5], [False]), ([7], [True]), ([5, 5, 5], [False, False, True])):
        state = RequestState("mine", [1, 2], max_new_tokens=3, eos_token_id=[7])
        state.status = RequestStatus.DECODING
        assert [state.update_and_check_completion(token, None) for token in tokens] == finished


def test_a_preempted_request_begins_again_with_its_tokens_as_its_prompt() -> None:
    state = RequestState("mine", [1, 2], max_new_tokens=3, num_children=3)
    state.generated_tokens = [5]
    again = state.create_equivalent_initial_request()
    assert (again.request_id, again.initial_tokens, again.max_new_tokens) == ("mine", [1, 2, 5], 2)
    assert (again.position_offset, again.num_children) == (0, 3)


def test_the_class_of_a_cache_and_of_a_state_can_be_changed() -> None:
    # The engine turns the library's objects into its own classes, which slots would forbid.
    assert not hasattr(PagedAttentionCache, "__slots__")
    assert not hasattr(RequestState, "__slots__")


def test_a_stopped_thread_accepts_nothing() -> None:
    status = BackgroundThreadStatus()
    assert status.can_accept_new_requests() is None
    status.mark_as_stopped()
    assert status.can_accept_new_requests() is not None


def test_the_configuration_has_the_fields_that_are_set() -> None:
    ContinuousBatchingConfig(
        page_size=16,
        num_blocks=4,
        max_batch_tokens=8,
        max_requests_per_batch=4,
        use_async_batching=False,
        use_cuda_graph=False,
        return_logprobs=True,
        cpu_group_timeout=None,
    )
    GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)


def test_pages_are_hashed_by_their_ids_as_signed_32_bit_integers() -> None:
    assert compute_block_hash(None, [-(2**31), 2**31 - 1]) != compute_block_hash(None, [0, 0])
    with pytest.raises(OverflowError):
        compute_block_hash(None, [2**31])


def test_attention_and_masks_can_be_registered_under_a_name() -> None:
    assert callable(AttentionInterface.register)
    assert callable(ALL_MASK_ATTENTION_FUNCTIONS.register)
    assert callable(sdpa_mask)
    assert list(inspect.signature(sdpa_attention_forward).parameters)[:5] == [
        "module", "query", "key", "value", "attention_mask",
    ]  # fmt: skip


def test_experts_can_be_registered_under_a_name_that_the_configuration_switches_to() -> None:
    assert callable(ALL_EXPERTS_FUNCTIONS.register)
    model = tiny_model("mixtral")
    experts = model.model.layers[0].mlp.experts
    assert experts.config is model.config.get_text_config()
    for name in ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm", "_apply_gate", "act_fn"):
        assert hasattr(experts, name), f"{type(experts).__name__} no longer has {name}"
    model.config._experts_implementation = "eager"
    assert model.config._experts_implementation == "eager"


def test_a_batch_names_its_rows_as_the_engine_makes_them_up_to_tiles() -> None:
    source = inspect.getsource(ContinuousBatchingIOs.get_model_kwargs)
    names = ("input_ids", "position_ids", "logits_indices", "cu_seq_lens_q", "cu_seq_lens_k")
    for name in (*names, "read_index", "write_index"):
        assert f"{name}=" in source, f"a batch no longer has {name}"


def test_inputs_are_described_by_all_that_the_library_itself_hands_from_the_host_to_a_device() -> None:
    source = inspect.getsource(ContinuousBatchingIOs._transfer_inputs)
    handed = {part.split()[0] for part in source.split("            other.")[0].split("other.")[1:]}
    assert handed - {"_bulk_input_tensor"} == set(SIZES), "a batch is described by other attributes now"


def test_the_loop_waits_on_an_event_that_can_be_set() -> None:
    assert "self._wake_up_loop = threading.Event()" in inspect.getsource(ContinuousBatchingManager.__init__)
    assert hasattr(threading.Event(), "set")
