"""The bundled demonstration model: small arithmetic with planted pivotal decisions.

The model, its data sets and the rates at which its decisions were planted ship with the package,
so a search can be run, and its findings checked, on a laptop without a download.
"""

from pathlib import Path

from steering_pts.demo.problems import SPLITS

__all__ = ["data_path", "model_path"]

_HERE = Path(__file__).parent


def model_path() -> Path:
    """The folder of the bundled model, for ``from_pretrained``."""
    return _HERE / "model"


def data_path(split: str) -> Path:
    """The JSONL file of a split.

    Raises:
        ValueError: ``split`` is not one of ``train``, ``validation``, ``test``.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    return _HERE / "data" / f"{split}.jsonl"
