"""An oracle's options: the keyword arguments of its constructor, checked against their annotations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from steering_pts.errors import OracleError

Seconds = Annotated[float, Field(gt=0, le=3600)]
"""A time limit: above 0 and at most an hour."""

_UNNAMED: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def check_options(
    oracle: str,
    make: Callable[..., object],
    options: Mapping[str, object],
    assignments: Sequence[str] = (),
) -> dict[str, Any]:
    """The keyword arguments for `make`, from named values and from texts `NAME=VALUE`, as their annotations have it.

    Raises:
        OracleError: A text without `=`, a name given twice, unknown or missing, or a value that its annotation refuses;
            the message lists all of them.
    """
    given, faults = _read_assignments(options, assignments)
    parameters = _parameters(make)
    values: dict[str, Any] = {}
    for name in given.keys() - parameters.keys():
        faults.append(f"there is no option {name!r}; {_expected(parameters)}")
    for name, (annotation, required) in parameters.items():
        if name not in given:
            if required:
                faults.append(f"option {name!r} is missing (--oracle-option {name}=...)")
            continue
        try:
            values[name] = TypeAdapter(annotation).validate_python(given[name])
        except ValidationError as error:
            reasons = "; ".join(dict.fromkeys(_reason(one["msg"]) for one in error.errors()))
            faults.append(f"option {name!r} is {given[name]!r:.80}: {reasons}")
    if faults:
        separator = "\n  " if len(faults) > 1 else " "
        raise OracleError(f"oracle {oracle!r}:{separator}" + "\n  ".join(sorted(faults)))
    return values


def _read_assignments(
    options: Mapping[str, object], assignments: Sequence[str]
) -> tuple[dict[str, object], list[str]]:
    given, faults = dict(options), []
    for assignment in assignments:
        name, sign, value = assignment.partition("=")
        name = name.strip()
        if not sign or not name:
            faults.append(f"{assignment!r:.80} is no option; expected NAME=VALUE")
        elif name in given:
            faults.append(f"option {name!r} is given twice")
        else:
            given[name] = value
    return given, faults


def _parameters(make: Callable[..., object]) -> dict[str, tuple[Any, bool]]:
    """Annotation of each parameter, and whether it must be given."""
    function = make.__init__ if inspect.isclass(make) else make
    hints = get_type_hints(function, include_extras=True)
    return {
        name: (hints.get(name, str), parameter.default is inspect.Parameter.empty)
        for name, parameter in inspect.signature(make).parameters.items()
        if parameter.kind not in _UNNAMED
    }


def _expected(parameters: Mapping[str, object]) -> str:
    return f"expected {', '.join(parameters)}" if parameters else "it takes none"


def _reason(message: str) -> str:
    return message.removeprefix("Value error, ").removeprefix("Assertion failed, ").lower()
