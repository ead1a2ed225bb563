"""transformers' continuous batching with our steering, sampling and cache salts put in at its seams.

Everything that touches the library's non-public parts is in this package, and tests/unit/test_seams.py fails with one
sentence when an upgrade moves one of them. The seams:

- `ContinuousBatchingManager._create_batch_processor`: where our model runner and salted cache are put in.
- `ContinuousBatchingManager._run_generation_loop` and `._generation_loop_body`: after each step callers are woken, and
  when the thread ends nobody is left waiting.
- `ContinuousBatchingManager.switch_to_cb_friendly_attn`: where the CPU and CUDA get their own attention, and the
  library's eager attention of packed batches (`paged|eager`) the soft cap that it leaves out.
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
- `ModelRunner._get_forward_fn`, `.run_one_warmup` and `ContinuousBatchingIOs.get_graph`: which forwards run as captured
  graphs, and their capture at the start.
- `PagedAttentionCache.layer_to_allocator`, `CacheAllocator.update`, which writes without reading when it is given
  nothing to read, and, where it `supports_block_table`, `get_cache_for_block_table`: keys are read where they are.
- The names of a batch's rows (`input_ids`, `position_ids`, `logits_indices`): made up to whole tiles where rows have to
  have the same bits in any batch, and `config._experts_implementation`, switched for such forwards.
- `ContinuousBatchingManager.distributed_helper`: processes that share a model make their caches together; from then on
  the library knows of one alone, and the driver tells its followers what it does: `ModelRunner.compute_batch` and
  `PagedAttentionCache.perform_cache_copy`. `ContinuousBatchingManager._handle_critical_error` names a lost process.
- `BlockLedger.cached_blocks`: pages that nobody uses and that are only kept for sharing.

- The attributes of `ContinuousBatchingIOs` that describe a batch: what the followers of a shared model are told of it.

The engine runs synchronously (no double buffering), so a context trigger sees every token before the next step.

`states` is a request as the library sees it, `cache` its pages, `runner` a forward with its steering and sampling,
`manager` the thread and the doors that the engine uses, `choices` what an engine is made with, `trial` what is tried
before the thread starts, `inputs` a batch as the followers of a shared model need it.
"""
