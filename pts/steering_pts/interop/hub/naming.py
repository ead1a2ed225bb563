"""What may be told of a run where others read it: nobody else knows the folders of this machine."""

from __future__ import annotations

from pathlib import Path

from steering_engine.vectors.schema import SteeringVector, VectorMetadata


def shown_model(model: str) -> str:
    """A model as others may know it: what is a folder here is its name alone."""
    return Path(model).name if _is_folder(model) else model


def is_on_hub(model: str) -> bool:
    """Whether a name has the form of an id on the Hub, and is no folder here."""
    return model.count("/") == 1 and not _is_folder(model)


def shown_vector(vector: SteeringVector) -> SteeringVector | None:
    """A vector whose file names its model as others may know it; None where it does so already."""
    metadata = vector.metadata
    settings = dict(metadata.discovery_settings)
    if isinstance(model := settings.get("model"), str):
        settings["model"] = shown_model(model)
    update = {"model_id": shown_model(metadata.model_id), "discovery_settings": settings}
    shown: VectorMetadata = metadata.model_copy(update=update)
    return (
        None
        if shown == metadata
        else SteeringVector(shown, vector.directions, vector.contexts, vector.probes, vector.centroids)
    )


def _is_folder(model: str) -> bool:
    return model.startswith((".", "/", "~")) or Path(model).exists()
