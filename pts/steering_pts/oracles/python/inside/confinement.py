"""Taking away from the own process what untrusted code must not have. Nothing of it can be taken back.

The kernel's own interfaces are called by ctypes: prctl(2), capset(2), landlock(7), seccomp(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

OPEN_FILES: Final = 64
LIBRARY_FD: Final = 6
"""Where the folder of the standard library stays open for those who could not reach it by name."""

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 22, 36, 38
_SECCOMP_MODE_FILTER: Final = 2
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = (
    444,
    445,
    446,
)  # the same on all machines
_CAPSET: Final = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION_3: Final = 0x20080522

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_ABI_1: Final = (1 << 13) - 1
_MAKE_SPECIAL: Final = 1 << 6 | 1 << 11  # devices
_SYSTEM_FOLDERS: Final = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo")
_SYSTEM_FILES: Final = ("/etc/ld.so.cache", "/etc/localtime", "/dev/urandom", "/dev/random", "/dev/zero")


@dataclass(frozen=True, slots=True)
class Confinement:
    """What a process keeps.

    `uid` is a user for it alone, None to stay who one is. `folders` and `files` may be read. `instructions` is the
    seccomp filter, whose operands at `own_process` become the process's id. With `unsafe`, a layer that the kernel
    does not offer is left out; else it is an error.
    """

    cpu_seconds: int
    memory_bytes: int
    file_bytes: int
    threads: int
    uid: int | None
    folders: tuple[str, ...]
    files: tuple[str, ...]
    instructions: tuple[tuple[int, int, int, int], ...]
    own_process: tuple[int, ...]
    unsafe: bool


class ConfinementError(Exception):
    """Layers that could not be had; the message names all of them."""


_libc = ctypes.CDLL(None, use_errno=True)


def confine(settings: Confinement, directory: str, launcher: int) -> None:
    """Confines this process (of one thread) to `directory`, as a process that ends when `launcher` does.

    Raises:
        ConfinementError: a layer can't be had, and `unsafe` is not set.
    """
    faults: list[str] = []
    ruleset: int | None = None

    def attempt(layer: str, action: Callable[[], object]) -> object:
        try:
            return action()
        except (OSError, ValueError) as error:
            faults.append(f"{layer}: {error.strerror if isinstance(error, OSError) else error}")
            return None

    with contextlib.suppress(OSError):  # so that a program out of memory is the first to go
        Path("/proc/self/oom_score_adj").write_text("1000")
    library = os.path.dirname(os.__file__)  # noqa: PTH120  # no pathlib objects to be found later
    if settings.uid is not None:
        os.dup2(os.open(library, os.O_PATH | os.O_DIRECTORY), LIBRARY_FD)
    found = attempt("file protection (Landlock)", lambda: _ruleset(settings, directory))
    ruleset = found if isinstance(found, int) else None
    attempt("resource limits", lambda: _limit(settings))
    attempt("privileges", lambda: _drop_privileges(settings))
    # After the change of user, which would undo it; and the launcher may have died before.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:
        os._exit(1)
    if settings.uid is not None and not os.access(os.path.join(library, "json"), os.R_OK | os.X_OK):  # noqa: PTH118
        _reach_library_by_descriptor(library)
    attempt("no new privileges", lambda: _prctl(_PR_SET_NO_NEW_PRIVS, 1))
    if ruleset is not None:
        attempt("file protection (Landlock)", lambda: _syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0))
        os.close(ruleset)
    attempt("network, process and system-call protection (seccomp)", lambda: _filter_system_calls(settings))
    if faults and not settings.unsafe:
        raise ConfinementError("; ".join(faults))


def become_subreaper() -> None:
    """Makes this process the parent of whatever its children leave behind."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _limit(settings: Confinement) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The launcher looks first. The kernel counts whole ticks for this limit, and on a busy machine reaches it before a
    # program has had its time; past the soft limit one that ignores the signal is killed.
    resource.setrlimit(resource.RLIMIT_CPU, (settings.cpu_seconds + 1, settings.cpu_seconds + 2))
    resource.setrlimit(resource.RLIMIT_AS, (settings.memory_bytes, settings.memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (settings.file_bytes, settings.file_bytes))
    if (
        settings.uid is not None
    ):  # counts the user's threads, so it says nothing about a user with other processes, one more for the tests
        resource.setrlimit(resource.RLIMIT_NPROC, (settings.threads + 1, settings.threads + 1))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    for name in ("MEMLOCK", "MSGQUEUE", "RTPRIO", "SIGPENDING"):
        limit = 64 if name == "SIGPENDING" else 0
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))


def _drop_privileges(settings: Confinement) -> None:
    """Becomes the user, if there is one to become, and gives up all capabilities in any case."""
    if settings.uid is not None:
        os.setgroups([])
        os.setresgid(settings.uid, settings.uid, settings.uid)
        os.setresuid(settings.uid, settings.uid, settings.uid)
    number = _CAPSET.get(os.uname().machine)
    if number is None:
        raise ValueError(f"capset is not known on {os.uname().machine}")
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _syscall(number, header, bytes(24))


def _reach_library_by_descriptor(library: str) -> None:
    """An interpreter in a folder that its user may not enter (`/root`): imports go through the open folder."""
    here = f"/proc/self/fd/{LIBRARY_FD}"
    sys.path[:] = [entry for entry in sys.path if entry == library or entry.startswith(library + "/")]
    packages = [vars(module).get("__path__") for module in list(sys.modules.values())]
    for paths in (sys.path, *(path for path in packages if isinstance(path, list))):
        paths[:] = [here + path.removeprefix(library) if path.startswith(library) else path for path in paths]
    sys.path_importer_cache.clear()


def _ruleset(settings: Confinement, directory: str) -> int:
    """A descriptor of the Landlock rules: reading what is allowed, anything in the directory, nothing else."""
    abi = _syscall(_LANDLOCK_CREATE_RULESET, None, 0, 1)
    handled = (
        _ABI_1
        | (_REFER if abi >= 2 else 0)
        | (_TRUNCATE if abi >= 3 else 0)
        | (_IOCTL_DEV if abi >= 5 else 0)
    )
    attributes = struct.pack(
        "=QQQ", handled, 0b11 if abi >= 4 else 0, 0b11 if abi >= 6 else 0
    )  # TCP; sockets, signals
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = _syscall(_LANDLOCK_CREATE_RULESET, attributes, size, 0)
    try:
        for path in {*settings.folders, *_SYSTEM_FOLDERS}:
            _allow(ruleset, path, _READ_FILE | _READ_DIR)
        for path in {*settings.files, *_SYSTEM_FILES}:
            _allow(ruleset, path, _READ_FILE)
        _allow(ruleset, "/dev/null", _READ_FILE | _WRITE_FILE)
        _allow(ruleset, directory, handled & ~(_EXECUTE | _MAKE_SPECIAL | _IOCTL_DEV))
    except OSError:
        os.close(ruleset)
        raise
    return ruleset


def _allow(ruleset: int, path: str, access: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return  # what is not there, or can't be entered, needs no permission
    try:
        _syscall(_LANDLOCK_ADD_RULE, ruleset, 1, struct.pack("=Qi", access, descriptor), 0)
    finally:
        os.close(descriptor)


def _filter_system_calls(settings: Confinement) -> None:
    if not settings.instructions:
        raise ValueError(f"there is no filter for {os.uname().machine}")
    own, process = set(settings.own_process), os.getpid()
    program = b"".join(
        struct.pack("=HBBI", code, if_true, if_false, process if index in own else operand)
        for index, (code, if_true, if_false, operand) in enumerate(settings.instructions)
    )
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(settings.instructions), ctypes.addressof(buffer))
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_char_p(header))


def _prctl(option: int, argument: int, pointer: ctypes.c_char_p | None = None) -> None:
    zero = ctypes.c_ulong(0)
    if _libc.prctl(option, ctypes.c_ulong(argument), pointer or zero, zero, zero) != 0:
        raise _error()


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    converted = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result = _libc.syscall(ctypes.c_long(number), *converted)
    if result < 0:
        raise _error()
    return int(result)


def _error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))
