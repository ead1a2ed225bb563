"""The decoder blocks of a model, found by structure, and the hooks that steer them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from steering_engine.errors import ModelError
from steering_engine.steering.forward import ForwardPlan
from steering_engine.steering.resident import ResidentPlan
from steering_engine.steering.table import DirectionTable

_MOST_NAMES = 4  # in a message


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
        found = ", ".join(outermost[:_MOST_NAMES]) or "none"
        found += f" and {len(outermost) - _MOST_NAMES} more" if len(outermost) > _MOST_NAMES else ""
        raise ModelError(
            f"{type(model).__name__}: expected one list of {count} decoder blocks, found {found}; "
            "this architecture can't be steered"
        )
    return lists[outermost[0]]


def check_residual_stream(
    model: Any, blocks: nn.ModuleList, forward: Callable[[list[int]], torch.Tensor]
) -> None:
    """Sees that every block gives one residual stream, which is what is steered.

    Args:
        model: The model.
        blocks: Its blocks.
        forward: Runs it on some ids.

    Raises:
        ModelError: A block gives something else (several streams, or one of another width).
    """
    width = model.config.get_text_config().hidden_size
    found: dict[int, str] = {}

    def look(index: int, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if not isinstance(hidden, torch.Tensor):
            found[index] = type(hidden).__name__
        elif hidden.shape != (1, 3, width):
            found[index] = f"shape {list(hidden.shape)}"

    handles = [
        block.register_forward_hook(lambda _module, _args, output, index=index: look(index, output))
        for index, block in enumerate(blocks)
    ]
    try:
        forward([0, 0, 0])
    finally:
        for handle in handles:
            handle.remove()
    if found:
        block, shape = min(found.items())
        raise ModelError(
            f"{type(model).__name__}: block {block} gives {shape}, expected a residual stream [1, 3, {width}]; "
            "this architecture can't be steered"
        )


def _alike(modules: nn.ModuleList) -> bool:
    return len({type(module) for module in modules}) == 1


class SteeringHooks:
    """Forward hooks on every block that apply the current batch's plan to resid_post (the block's output).

    A plan belongs to the thread that set it. Without one the hooks return at once, so forwards outside the engine
    (recording, scoring) are never touched, not even while the engine runs beside them.

    Attributes:
        table: The directions.
    """

    def __init__(self, blocks: nn.ModuleList, table: DirectionTable) -> None:
        self.table = table
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
        steered = plan.apply(block, rows, self.table)
        if steered is rows:
            return None
        return (steered[None], *output[1:]) if isinstance(output, tuple) else steered[None]

    def remove(self) -> None:
        """Takes the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
