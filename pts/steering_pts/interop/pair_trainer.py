"""TRL's trainer for direct preference optimisation, on pairs of token ids.

TRL's own takes text: it appends the end-of-sequence token to every answer, and finds where the answer begins by
tokenising prompt and answer together. A pair of single tokens would then teach the model to stop after its decision, or
lose its boundary. This one takes `prompt_ids`, `chosen_ids` and `rejected_ids` as they are.

Needs the extra `pivotal-steering[dpo]`.
"""

from __future__ import annotations

from typing import Any, Final

from datasets import Dataset
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from steering_pts.errors import DataError

ID_COLUMNS: Final = ("prompt_ids", "chosen_ids", "rejected_ids")
_MAX_ID: Final = 2**31


class PairTrainer(DPOTrainer):
    """Trains on the id columns of a data set; its text columns, if it has any, are not looked at.

    Everything else is TRL's: losses, reference model or adapter, logging, checkpoints.

    Raises:
        DataError: A column is not there, a row has an empty or malformed list, or one that `max_length` would cut
            within the answers.
    """

    def _prepare_dataset(
        self, dataset: Dataset, processing_class: Any, args: DPOConfig, dataset_name: str
    ) -> Dataset:
        """What TRL makes of its text columns, already there: the three columns that its collator reads."""
        del processing_class
        if missing := [column for column in ID_COLUMNS if column not in (dataset.column_names or ())]:
            raise DataError(f"data set {dataset_name!r}", [f"no column {name!r}" for name in missing])
        chosen = dataset.select_columns(list(ID_COLUMNS))
        faults = [
            f"row {number}: {fault}"
            for number, row in enumerate(chosen, start=1)
            if (fault := _fault(row, args)) is not None
        ]
        if faults:
            raise DataError(f"data set {dataset_name!r}", faults)
        return chosen


def _fault(row: dict[str, Any], args: DPOConfig) -> str | None:
    for column in ID_COLUMNS:
        ids = row[column]
        if not isinstance(ids, list) or not ids:
            return f"{column} is {ids!r:.40}; expected a list of at least one token id"
        if any(not isinstance(id_, int) or not 0 <= id_ < _MAX_ID for id_ in ids):
            return f"{column} holds something else than token ids"
    if row["chosen_ids"] == row["rejected_ids"]:
        return "chosen_ids and rejected_ids are the same"
    longest = len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
    if args.max_length is not None and longest > args.max_length and args.truncation_mode == "keep_start":
        return (
            f"{longest} tokens, of which max_length={args.max_length} would cut the answer; raise it, or pass "
            'truncation_mode="keep_end"'
        )
    return None
