"""Where a trigger would fire along a completion that is known: read off a teacher-forced forward, without a rollout.

Settings that differ in their trigger alone often act at the same steps, and then they make the same completion, token
by token: up to the first difference of their acts everything is equal, and there is none. So a completion of one
setting is that of every other whose trigger fires at exactly its steps, and an unsteered one is that of every setting
whose trigger fires nowhere in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from steering_engine.steering.contexts import ContextIndex
from steering_engine.vectors.schema import SteeringVector
from steering_pts.calibration.forcing import Observer, TracedCompletion
from steering_pts.calibration.settings import TriggerChoice

# A forced forward and the engine's own differ in the last bits: about 1e-5 of a float32 logit.
_LOGIT_MARGIN = 1e-3
_COSINE_MARGIN = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class Firing:
    """A trigger of a vector with what it compares.

    Attributes:
        choice: The trigger.
        vector: The vector whose contexts, probe or centroids it reads.
        contexts: The vector's contexts, ready to match.
    """

    choice: TriggerChoice
    vector: SteeringVector
    contexts: ContextIndex

    @property
    def block(self) -> int | None:
        """The block that is read; None for a trigger that reads none."""
        return self.choice.block

    def on_ids(self, prompt: Sequence[int], ids: Sequence[int]) -> list[bool]:
        """At which steps a context, or a rule without a trigger, acts: `[generated tokens]`."""
        if self.choice.kind == "always":
            return [True] * len(ids)
        least = self.vector.metadata.context_min_match
        history = [*prompt, *ids]
        return [
            self.contexts.longest_match(history[:end]) >= least for end in range(len(prompt), len(history))
        ]

    def on_states(self, states: torch.Tensor) -> list[bool] | None:
        """At which steps a probe or similarity fires.

        Args:
            states: resid_post of the block that is read at every step, before any rule acts there, `[steps, hidden]`.

        Returns:
            `[steps]`; None where a value is so close to its threshold that rounding may decide.
        """
        metadata, block = self.vector.metadata, self.choice.block
        if block is None:
            raise ValueError(f"a trigger of kind {self.choice.kind} reads no states")
        exact = states.double()
        if self.choice.kind == "probe":
            probe, threshold = self.vector.probes[block], metadata.probe_threshold[block]
            least = math.log(threshold) - math.log1p(-threshold)
            values, margin = exact @ probe.weight.double().to(exact.device) + probe.bias, _LOGIT_MARGIN
        else:
            centres = torch.nn.functional.normalize(self.vector.centroids[block].double(), dim=-1)
            rows = torch.nn.functional.normalize(exact, dim=-1)
            values = (rows @ centres.to(exact.device).T).amax(-1)
            least, margin = metadata.centroid_min_cosine[block], _COSINE_MARGIN
        if bool(((values - least).abs() <= margin).any()):
            return None
        fired: list[bool] = (values > least).tolist()
        return fired


class Agreement:
    """Which other triggers would have acted at exactly the steps of completions."""

    def __init__(
        self, relatives: Mapping[str, Firing], completions: Sequence[TracedCompletion], places: Sequence[int]
    ) -> None:
        self._places = places
        self._relatives = relatives
        self._acted = [
            [step in {act.step for act in one.acts} for step in range(len(one.ids))] for one in completions
        ]
        self._agreeing: dict[str, set[int]] = {
            key: {
                row
                for row, one in enumerate(completions)
                if firing.on_ids(one.prompt_ids, one.ids) == self._acted[row]
            }
            if firing.block is None
            else set()
            for key, firing in relatives.items()
        }

    @property
    def observer(self) -> Observer | None:
        """Sees what probes and similarities would have read; None where there are none."""
        blocks = {firing.block for firing in self._relatives.values() if firing.block is not None}
        return Observer(tuple(sorted(blocks)), self._see) if blocks else None

    def places(self) -> dict[str, list[int]]:
        """By other arm, the places of completions that are its own as well."""
        return {key: [self._places[row] for row in sorted(rows)] for key, rows in self._agreeing.items()}

    def _see(self, row: int, block: int, states: torch.Tensor) -> None:
        for key, firing in self._relatives.items():
            if firing.block == block and firing.on_states(states) == self._acted[row]:
                self._agreeing[key].add(row)
