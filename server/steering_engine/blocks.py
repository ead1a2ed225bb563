"""The decoder blocks of a model, found by structure, and the hooks that steer them."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

from steering_engine.errors import ModelError
from steering_engine.steering.forward import ForwardPlan
from steering_engine.steering.resident import ResidentPlan
from steering_engine.steering.table import DirectionTable


def find_blocks(model: Any) -> nn.ModuleList:
    """The list of decoder blocks: the one list of modules as long as the configuration says there are blocks.

    Raises:
        ModelError: There is no such list, or more than one.
    """
    config = model.config.get_text_config()
    count = config.num_hidden_layers
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and _alike(module)
    }
    # A list inside a block (experts, say) can have the same length; the blocks are the outermost.
    outermost = [
        name for name in lists if not any(name.startswith(f"{other}.") for other in lists if other != name)
    ]
    if len(outermost) != 1:
        found = ", ".join(outermost) or "none"
        raise ModelError(
            f"{type(model).__name__}: expected one list of {count} decoder blocks, found {found}; "
            "this architecture can't be steered"
        )
    return lists[outermost[0]]


def _alike(modules: nn.ModuleList) -> bool:
    return len({type(module) for module in modules}) == 1


class SteeringHooks:
    """Forward hooks on every block that apply the current batch's plan to resid_post (the block's output).

    A plan belongs to the thread that set it. Without one the hooks return at once, so forwards outside the engine
    (recording, scoring) are never touched, not even while the engine runs beside them.
    """

    def __init__(self, blocks: nn.ModuleList, table: DirectionTable) -> None:
        self._table = table
        self._of_thread = threading.local()
        self._handles = [
            block.register_forward_hook(
                lambda _module, _args, output, index=index: self._steer(index, output)
            )
            for index, block in enumerate(blocks)
        ]

    @property
    def plan(self) -> ForwardPlan | ResidentPlan | None:
        """What this thread's next forward does."""
        return getattr(self._of_thread, "plan", None)

    @plan.setter
    def plan(self, plan: ForwardPlan | ResidentPlan | None) -> None:
        self._of_thread.plan = plan

    def _steer(self, block: int, output: Any) -> Any:
        plan = self.plan
        if plan is None:
            return None
        hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
        rows = hidden[0]
        steered = plan.apply(block, rows, self._table)
        if steered is rows:
            return None
        return (steered[None], *output[1:]) if isinstance(output, tuple) else steered[None]

    def remove(self) -> None:
        """Takes the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
