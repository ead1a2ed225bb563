"""How well probes tell pivotal steps, measured against the dense reference of the bundled model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from steering_engine.loading import LoadedModel
from steering_engine.vectors.schema import Probe, SteeringVector
from steering_pts.demo.step_reference import StepReference
from steering_pts.errors import SearchError
from steering_pts.ledger import LedgerReader
from steering_pts.vectors.probes import probes_of
from steering_pts.vectors.step_states import learn_from, step_states


@dataclass(frozen=True, slots=True, eq=False)
class ProbeAt:
    """A probe, the block that it reads, and the least probability that fires."""

    block: int
    probe: Probe
    threshold: float

    @classmethod
    def of(cls, vector: SteeringVector, block: int) -> ProbeAt:
        """A vector file's probe at a block, with the file's threshold.

        Raises:
            SearchError: The file has none there.
        """
        if block not in vector.probes or block not in vector.metadata.probe_threshold:
            having = sorted(vector.probes.keys() & vector.metadata.probe_threshold.keys())
            raise SearchError(
                f"{vector.metadata.name}: no probe with a threshold at block {block}; "
                + (f"it has some at {having}" if having else "it has none at all")
            )
        return cls(block, vector.probes[block], vector.metadata.probe_threshold[block])


def pivot_probe(ledger: LedgerReader, loaded: LoadedModel) -> ProbeAt:
    """The probe for pivotal steps of any kind that a run's own labels make, at the block where it tells them best.

    Raises:
        SearchError: The run has too few steps of either kind.
    """
    steps = learn_from(ledger, loaded, range(loaded.block_count))
    targets = steps.recorded.of(steps.table.targets())
    fitted = probes_of(steps.recorded.states, targets, steps.problem_ids)
    if not fitted:
        raise SearchError("the run has too few pivotal or ordinary steps for a probe")
    block = max(fitted, key=lambda one: (fitted[one].auc, -one))
    return ProbeAt(block, fitted[block].probe, fitted[block].threshold)


@dataclass(frozen=True, slots=True)
class ProbeQuality:
    """How well a trigger tells pivotal steps.

    Steps whose variance the reference leaves open count in none of the three shares, and are told apart.

    Attributes:
        auc: Chance that a pivotal step scores higher than another.
        precision: Share of pivotal steps among those where it fires; None where it never does.
        recall: Share of the pivotal steps at which it fires.
        steps: Steps with a certain label.
        pivotal: How many of them are pivotal.
        fired: At how many of them it fires.
        ambiguous: Steps without a certain label.
        ambiguous_fired: At how many of those it fires.
    """

    auc: float
    precision: float | None
    recall: float
    steps: int
    pivotal: int
    fired: int
    ambiguous: int
    ambiguous_fired: int


def measure_probe(loaded: LoadedModel, probes: Sequence[ProbeAt], reference: StepReference) -> ProbeQuality:
    """How well a trigger that fires where any of some probes does tells the reference's pivotal steps.

    Args:
        loaded: The model that the reference was made with.
        probes: One probe, or those of several vectors that together serve all kinds of decisions.
        reference: The dense reference.
    """
    scores = _margins(loaded, probes, reference)
    labels = [label for completion in reference.completions for label in completion.labels(reference.tau)]
    certain = np.array([label is not None for label in labels])
    pivotal = np.array([bool(label) for label in labels])
    fires = scores >= 0
    hits = int((fires & pivotal & certain).sum())
    fired = int((fires & certain).sum())
    wanted = int((pivotal & certain).sum())
    return ProbeQuality(
        auc=float(roc_auc_score(pivotal[certain], scores[certain])),
        precision=hits / fired if fired else None,
        recall=hits / wanted,
        steps=int(certain.sum()),
        pivotal=wanted,
        fired=fired,
        ambiguous=int((~certain).sum()),
        ambiguous_fired=int((fires & ~certain).sum()),
    )


def _margins(loaded: LoadedModel, probes: Sequence[ProbeAt], reference: StepReference) -> NDArray[np.float64]:
    """By how much the best of the probes is above its threshold, in logits, `[steps]`; it fires from 0 on."""
    completions = [(completion.prompt_ids, completion.ids) for completion in reference.completions]
    places = [(number, step) for number, (_, ids) in enumerate(completions) for step in range(len(ids))]
    states = step_states(loaded, completions, places, sorted({own.block for own in probes}))
    margins = [
        states[own.block].double() @ own.probe.weight.double()
        + own.probe.bias
        - math.log(own.threshold / (1 - own.threshold))
        for own in probes
    ]
    best: NDArray[np.float64] = torch.stack(margins).amax(dim=0).numpy()
    return best
