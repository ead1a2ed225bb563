"""Where a configuration comes from: flags before the environment before a TOML file before the defaults."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from steering_server.config import ConfigError, Fault, ServerConfig, flag

PREFIX = "STEERING_SERVER_"
CONFIG_VARIABLE = f"{PREFIX}CONFIG"
"""Variable that names the configuration file."""


class _Settings(ServerConfig, BaseSettings):
    """The settings as pydantic-settings wants them to read them; never made, only read for."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True)


@dataclass(frozen=True, slots=True)
class Resolved:
    """A configuration and where it comes from.

    Attributes:
        config: The configuration.
        origins: For each setting that was given, what its user called it: a flag, a variable, or a key and its file.
        unknown_variables: Variables with our prefix that set nothing.
    """

    config: ServerConfig
    origins: dict[str, str]
    unknown_variables: tuple[str, ...]


def variable(name: str) -> str:
    """The variable of a setting."""
    return PREFIX + name.upper()


def resolve(flags: Mapping[str, Any], file: Path | None) -> Resolved:
    """The effective configuration.

    Args:
        flags: Settings given on the command line, by name.
        file: The TOML file; None takes the one that the environment names, if it does.

    Raises:
        ConfigError: Something is wrong; all of it at once, each called as its user calls it.
    """
    faults: list[Fault] = []
    origins: dict[str, str] = {}
    values: dict[str, Any] = {}
    if file is None and (named := os.environ.get(CONFIG_VARIABLE)):
        file = Path(named)
    if file is not None:
        try:
            values = _read_file(file)
        except ConfigError as error:
            faults += error.faults
        origins = {name: f"{name} in {file}" for name in values}
    from_environment = EnvSettingsSource(_Settings)()
    for given, called in ((from_environment, variable), (flags, flag)):
        values |= given
        origins |= {name: called(name) for name in given}
    for name, value in list(values.items()):
        # Control characters, and bytes of a variable that are no Unicode, which could not even be told.
        if isinstance(value, str) and not value.isprintable():
            faults.append(Fault(name, "expected printable characters only"))
            del values[name]
    wrong = {fault.name for fault in faults}
    # Of a file that can't be read nobody knows what it sets, so nothing is said of what is missing then.
    unknown_names = ServerConfig.model_fields.keys() - values.keys() if "config" in wrong else set()
    try:
        config = ServerConfig(**values)
    except ConfigError as error:
        told = (fault for fault in error.faults if fault.name not in wrong | unknown_names)
        faults += map(_with_suggestion, told)
    if faults:
        raise ConfigError(tuple(faults), {"config": "--config", **origins})
    known = {*map(variable, ServerConfig.model_fields), CONFIG_VARIABLE}
    prefixed = (name for name in os.environ if name.upper().startswith(PREFIX))
    unknown = tuple(sorted(name for name in prefixed if name.upper() not in known))
    return Resolved(config, origins, unknown)


def _read_file(file: Path) -> dict[str, Any]:
    try:
        return dict(TomlConfigSettingsSource(_Settings, toml_file=_existing(file))())
    except tomllib.TOMLDecodeError as error:
        raise ConfigError((Fault("config", f"{str(file)!r} is no TOML: {error}"),)) from error
    except UnicodeDecodeError as error:
        raise ConfigError((Fault("config", f"{str(file)!r} is no text in UTF-8"),)) from error
    except OSError as error:
        text = f"{str(file)!r} can't be read: {error.strerror or error}"
        raise ConfigError((Fault("config", text),)) from error


def _existing(file: Path) -> Path:
    # The library passes over files that it doesn't find.
    file.stat()
    if not file.is_file():
        raise IsADirectoryError(None, "it is no file")
    return file


def _with_suggestion(fault: Fault) -> Fault:
    if fault.name in ServerConfig.model_fields:
        return fault
    near = difflib.get_close_matches(fault.name.replace("-", "_"), ServerConfig.model_fields, n=1)
    return Fault(fault.name, fault.text + (f"; did you mean {near[0]}?" if near else ""))
