"""The model of a vector file, where it is at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from huggingface_hub import snapshot_download

from steering_engine.alias import DEMO, resolve_model
from steering_engine.errors import ModelError
from steering_engine.loading import LoadedModel, load_model
from steering_engine.vectors.schema import VectorMetadata
from steering_pts.errors import InspectionError
from steering_pts.report.texts import shorten

_SHOWN_NAME: Final = 80  # characters of a file's own word, which may be of any length


def load_named(source: str, metadata: VectorMetadata) -> LoadedModel:
    """The model that a user has named.

    Raises:
        ModelError: It can't be loaded.
        InspectionError: It is not of the vector's shape.
    """
    loaded = load_model(resolve_model(source), device="cpu")
    ours, theirs = (metadata.hidden_size, metadata.block_count), (loaded.hidden_size, loaded.block_count)
    if ours != theirs:
        raise InspectionError(
            f"{source} has {theirs[1]} blocks of width {theirs[0]}; the vector is for {ours[1]} blocks of width "
            f"{ours[0]} ({metadata.model_id})"
        )
    return loaded


def load_own(metadata: VectorMetadata) -> LoadedModel:
    """The model that the file itself names, if it is on this machine: a file can make nobody download a model.

    Raises:
        ModelError: It is not here, can't be loaded, or is another one by now.
        InspectionError: It is not of the vector's shape.
    """
    loaded = load_named(_here(metadata), metadata)
    if loaded.config_digest != metadata.model_config_digest:
        name = shorten(metadata.model_id, _SHOWN_NAME)
        raise ModelError(f"{name} is here with another configuration than the vector's")
    return loaded


def differences(loaded: LoadedModel, metadata: VectorMetadata) -> list[str]:
    """A sentence for each way in which a model is not the one that the vector was made for."""
    found = []
    if loaded.config_digest != metadata.model_config_digest:
        found.append("the model's configuration is not that of the vector's model")
    if loaded.tokenizer_digest != metadata.tokenizer_digest:
        found.append("its tokenizer is not that of the vector's model: texts of contexts may be wrong")
    return found


def _here(metadata: VectorMetadata) -> str:
    name = metadata.model_id
    try:
        if name == DEMO or Path(name).is_dir():
            return name
        return snapshot_download(name, revision=metadata.model_revision or None, local_files_only=True)
    except (OSError, ValueError):  # not in the cache, or no name of a model or a folder at all
        raise ModelError(f"{shorten(name, _SHOWN_NAME)} is not on this machine") from None
