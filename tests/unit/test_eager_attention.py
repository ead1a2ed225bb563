"""Eager attention of packed batches: what the library leaves out is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from steering_engine.loading import load_model
from tests.support.direct import get, request, running_engine, watched_logits
from tests.support.models import save_tiny_model


@pytest.mark.parametrize("cap", [0.5, 50.0, None])
async def test_scores_are_capped_as_in_an_ordinary_forward(cap: float | None, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", "gemma2", attn_logit_softcapping=cap, initializer_range=0.2)
    ordinary = load_model(str(folder), "cpu", "float32").model
    prompt = tuple(range(60, 80))
    async with running_engine(load_model(str(folder), "cpu", "float32"), {}) as model:
        with watched_logits(model) as logits:
            got = await get(model, request(model, "capped", prompt))
    with torch.no_grad():
        ids = torch.tensor([[*prompt, *got.ids[:-1]]])
        expected = ordinary(ids, use_cache=False).logits[0, len(prompt) - 1 :]
    torch.testing.assert_close(torch.stack(logits["capped"]), expected, rtol=0, atol=1e-5)
