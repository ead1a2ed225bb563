"""The steering of requests that name none, read from the operator's file."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import json_format

from steering.v1 import steering_pb2
from steering_engine.model import SteeredModel
from steering_server.errors import StartError
from steering_server.security.secret_files import read_file
from steering_spec import (
    GenerationSpec,
    InvalidRequestError,
    PromptIds,
    SteeringSpec,
    Violation,
    request_violations,
)
from steering_spec.convert.steering import steering_from_proto


def read_default_steering(path: Path) -> SteeringSpec:
    """Reads a `steering.v1.SteeringSpec` in the JSON of protobuf.

    Raises:
        StartError: The file can't be read, or holds something else.
    """
    message = steering_pb2.SteeringSpec()
    try:
        json_format.Parse(read_file(path).decode(), message)
        return steering_from_proto(message)
    except UnicodeDecodeError as error:
        raise StartError(f"{str(path)!r} is no text in UTF-8") from error
    except json_format.ParseError as error:
        text = " ".join(str(error).split())
        raise StartError(f"{str(path)!r} is no steering.v1.SteeringSpec in JSON: {text}") from error
    except InvalidRequestError as error:
        raise _refusal(path, error.violations) from error


def check_default_steering(path: Path, steering: SteeringSpec, model: SteeredModel) -> None:
    """Judges a default steering by the model and its vectors.

    Raises:
        StartError: Requests could not be steered so; everything that is wrong.
    """
    spec = GenerationSpec(PromptIds((0,)), steering=steering)
    # The length of a prompt is not known before there is one.
    if faults := request_violations(spec, model.info.facts, model.vectors.facts):
        raise _refusal(path, tuple(faults))


def _refusal(path: Path, faults: tuple[Violation, ...]) -> StartError:
    return StartError(f"{str(path)!r}: " + "; ".join(map(str, faults)))
