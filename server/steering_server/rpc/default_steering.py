"""The steering of requests that name none, read from the operator's file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from google.protobuf import json_format

from steering.v1 import steering_pb2
from steering_engine.model import SteeredModel
from steering_engine.vectors.registry import VectorRegistry
from steering_server.errors import StartError
from steering_server.security.secret_files import read_file
from steering_spec import (
    Clause,
    GenerationSpec,
    InvalidRequestError,
    PromptText,
    Selector,
    SteeringSpec,
    VectorFacts,
    VectorRef,
    Violation,
    ViolationKind,
    request_violations,
)
from steering_spec.convert.steering import steering_from_proto
from steering_spec.facts import FindVector


def read_default_steering(path: Path) -> SteeringSpec:
    """Reads a `steering.v1.SteeringSpec` in the JSON of protobuf.

    Raises:
        StartError: The file can't be read, or holds something else.
    """
    try:
        return steering_from_proto(_message(read_file(path).decode()))
    except UnicodeDecodeError as error:
        raise StartError(f"{str(path)!r} is no text in UTF-8") from error
    except json_format.ParseError as error:
        reason = " ".join(str(error).split())
        raise StartError(f"{str(path)!r} is no steering.v1.SteeringSpec in JSON: {reason}") from error
    except InvalidRequestError as error:
        raise _refusal(path, error.violations) from error


def _message(text: str) -> steering_pb2.SteeringSpec:
    if not text.lstrip().startswith("{"):  # protobuf takes an empty list or text for an empty message
        raise json_format.ParseError("expected an object")
    return json_format.Parse(text, steering_pb2.SteeringSpec())


def check_becoming_current(
    ref: VectorRef, facts: VectorFacts, steering: SteeringSpec, model: SteeredModel
) -> None:
    """Refuses a vector that is about to become current where the default steering could not be applied with it.

    Raises:
        InvalidRequestError: It names the vector, and asks for something that the vector has not.
    """
    if ref not in {VectorRef.parse(rule.vector) for rule in steering.rules}:
        return

    def find(other: VectorRef) -> VectorFacts | None:
        return facts if other == ref else model.vectors.facts(other)

    if faults := _faults(steering, model, find):
        text = "the server's default steering could not be applied with it: "
        raise InvalidRequestError(
            [Violation("source", f"{text}{fault}", ViolationKind.PRECONDITION) for fault in faults]
        )


def check_unloading(ref: VectorRef, steering: SteeringSpec, registry: VectorRegistry) -> None:
    """Refuses to unload what the default steering means.

    Raises:
        InvalidRequestError: It means this version.
    """
    asked = registry.find(ref)
    if asked is not None and any(
        registry.find(VectorRef.parse(rule.vector)) is asked for rule in steering.rules
    ):
        text = "the server's default steering uses it; replace it, or start the server with another default"
        raise InvalidRequestError([Violation("name", text, ViolationKind.PRECONDITION)])


def check_default_steering(path: Path, steering: SteeringSpec, model: SteeredModel) -> None:
    """Judges a default steering by the model and its vectors.

    Raises:
        StartError: Requests could not be steered so; everything that is wrong.
    """
    if faults := _faults(steering, model, model.vectors.facts):
        raise _refusal(path, tuple(faults))


def fitting(steering: SteeringSpec, faults: Sequence[Violation]) -> SteeringSpec:
    """A default steering as far as it can act on one request.

    The operator did not know this prompt, so what its length or the tokens asked for leave no row for is left out: the
    clauses of selectors that the faults name, and rules of which no clause is left. Other faults stay, and are told.
    """
    unfit = {fault.field for fault in faults}
    rules = []
    for number, rule in enumerate(steering.rules):
        selector = f"steering.rules[{number}].selector"

        def left(clauses: Sequence[Clause], kind: str, selector: str = selector) -> tuple[Clause, ...]:
            paths = [f"{selector}.{kind}[{place}]" for place in range(len(clauses))]
            return tuple(
                clause
                for clause, path in zip(clauses, paths, strict=True)
                if not any(field == path or field.startswith(f"{path}.") for field in unfit)
            )

        if include := left(rule.selector.include, "include"):
            kept = Selector(include, left(rule.selector.exclude, "exclude"))
            rules.append(replace(rule, selector=kept))
    return replace(steering, rules=tuple(rules))


def _faults(steering: SteeringSpec, model: SteeredModel, find_vector: FindVector) -> list[Violation]:
    # As text: the length of a prompt is not known before there is one.
    spec = GenerationSpec(PromptText("any"), steering=steering)
    return request_violations(spec, model.info.facts, find_vector)


def _refusal(path: Path, faults: tuple[Violation, ...]) -> StartError:
    return StartError(f"{str(path)!r}: " + "; ".join(map(str, faults)))
