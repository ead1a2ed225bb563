"""Candidate files of the bundled model's pivots: every method at every block, with probes, centroids and contexts."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression

from steering_engine.blocks import find_blocks
from steering_engine.loading import LoadedModel
from steering_engine.vectors.file import save_vector
from steering_engine.vectors.schema import Probe
from steering_pts.cli.run import RunFolder
from steering_pts.ledger import LedgerReader
from steering_pts.vectors.building import METHODS, Provenance, VectorMaker, to_vector
from steering_pts.vectors.events import events_of_run, group_events
from steering_pts.vectors.recording import record

RUN_DIGEST = "0" * 64
_CREATED = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def write_candidates(loaded: LoadedModel, run: RunFolder, folder: Path, min_events: int = 4) -> list[str]:
    """Writes one file for each group and method, and their index; returns the names of the groups."""
    with run.read() as ledger:
        events = events_of_run(ledger)
        others = _other_prefixes(ledger)
    blocks = tuple(range(loaded.block_count))
    groups, _ = group_events(events, min_events, lambda ids: str(loaded.tokenizer.decode(list(ids))))
    recording = record(loaded, events, blocks)
    others_at = _states(loaded, others, blocks)
    provenance = Provenance(RUN_DIGEST, {}, "Apache-2.0", _CREATED)
    index = []
    for number, group in enumerate(groups):
        name = f"group-{number + 1}"
        rows = tuple(events.index(event) for event in group.events)
        maker = VectorMaker(loaded, group, recording, rows)
        files = {}
        for method in METHODS:
            file = f"{name}-{method.replace('_', '-')}.safetensors"
            _save(maker, method, blocks, provenance, others_at, folder / file)
            files[method] = file
        index.append({"name": name, "events": len(group.events), "files": files})
    text = json.dumps({"schema": "steering.candidates/1", "run_digest": RUN_DIGEST, "groups": index})
    (folder / "index.json").write_text(text, encoding="utf-8")
    return [f"group-{number + 1}" for number in range(len(groups))]


def _save(
    maker: VectorMaker,
    method: str,
    blocks: Sequence[int],
    provenance: Provenance,
    others: dict[int, torch.Tensor],
    path: Path,
) -> None:
    made = maker.candidates([method], blocks)
    probes, centroids, thresholds, cosines = {}, {}, {}, {}
    for block in blocks:
        own = maker.recording.states["prefix"][block][list(maker.indices)]
        probes[block], thresholds[block] = _probe(own, others[block])
        centre = torch.nn.functional.normalize(own, dim=-1).mean(0)
        centroids[block] = centre[None].contiguous()
        cosine = torch.nn.functional.cosine_similarity
        near, far = cosine(own, centre[None]).min(), cosine(others[block], centre[None]).max()
        cosines[block] = float((near + far) / 2) if far < near else float(near)
    first = to_vector(maker, made[0], path.stem, made[0].norm, provenance)
    update: dict[str, Any] = {
        "description": f"{method} at every block",
        "calibrated_strength": {one.block: one.norm for one in made},
        "residual_norm": {one.block: maker.recording.residual_norm(one.block) for one in made},
        "probe_threshold": thresholds,
        "centroid_min_cosine": cosines,
    }
    save_vector(
        path,
        dataclasses.replace(
            first,
            metadata=first.metadata.model_copy(update=update),
            directions={one.block: one.direction.contiguous() for one in made},
            probes=probes,
            centroids=centroids,
        ),
    )


def _probe(own: torch.Tensor, others: torch.Tensor) -> tuple[Probe, float]:
    """A logistic probe of a group's states against others, and the threshold in the middle between them."""
    states = torch.cat([own, others]).double()
    labels = [1] * len(own) + [0] * len(others)
    scale = states.norm(dim=-1).mean()
    fitted = LogisticRegression(class_weight="balanced", max_iter=2000).fit((states / scale).numpy(), labels)
    weight = torch.from_numpy(fitted.coef_[0]) / scale
    probe = Probe(weight.float(), float(fitted.intercept_[0]))
    chances = torch.sigmoid(states @ weight + probe.bias)
    middle = float((chances[: len(own)].min() + chances[len(own) :].max()) / 2)
    return probe, min(max(middle, 0.01), 0.99)


def _other_prefixes(ledger: LedgerReader) -> list[tuple[int, ...]]:
    """The prefixes before tokens of searched completions at which no pivot stands, one completion in two."""
    pivots = {(pivot.completion_id, pivot.position) for pivot in ledger.pivots()}
    searched = sorted({completion for completion, _ in pivots})[::2]
    prefixes = []
    for name in searched:
        completion = ledger.completion(name)
        assert completion is not None
        prefixes += [
            (*completion.prompt_ids, *completion.ids[:position])
            for position in range(len(completion.ids))
            if (name, position) not in pivots
        ]
    return prefixes


@torch.inference_mode()
def _states(
    loaded: LoadedModel, prefixes: Sequence[tuple[int, ...]], blocks: Sequence[int]
) -> dict[int, torch.Tensor]:
    """resid_post of the last row of each prefix, `[prefixes, hidden]` by block."""
    found: dict[int, list[torch.Tensor]] = {block: [] for block in blocks}

    def keep(block: int) -> Any:
        def hook(_module: torch.nn.Module, _args: Any, output: Any) -> None:
            found[block].append((output[0] if isinstance(output, tuple) else output)[0, -1].clone())

        return hook

    modules = find_blocks(loaded.model)
    handles = [modules[block].register_forward_hook(keep(block)) for block in blocks]
    try:
        for prefix in prefixes:
            loaded.model(input_ids=torch.tensor([prefix]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {block: torch.stack(rows) for block, rows in found.items()}
