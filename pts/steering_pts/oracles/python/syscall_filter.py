"""The system calls that a confined process may make, as a program for the kernel's seccomp filter.

A list of what is allowed, not of what is forbidden: a call that a later kernel adds is refused until somebody has
thought about it. The numbers come from the package system-calls, the instructions are classic BPF
(https://docs.kernel.org/userspace-api/seccomp_filter.html). The filter sees numbers, never what a pointer points to:
which files may be opened is Landlock's to say.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final

from system_calls import NoSuchSystemCall, NotSupportedSystemCall, syscalls

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, operand: the kernel's `struct sock_filter`."""


@dataclass(frozen=True, slots=True)
class SyscallFilter:
    """Instructions, and those among them whose operand is to be the id of the process that loads the filter."""

    instructions: tuple[Instruction, ...]
    own_process: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Condition:
    """The low 32 bits of argument `index`, under `mask`, are one of `values` (None: the process's own id)."""

    index: int
    values: tuple[int | None, ...]
    mask: int = 0xFFFFFFFF


_MACHINES: Final = {"x86_64": ("x86_64", 0xC000003E), "aarch64": ("arm64", 0xC00000B7)}
"""For `os.uname().machine`: the name in system-calls, and AUDIT_ARCH of linux/audit.h."""

_ALLOWED: Final = (
    # Reading, writing, waiting.
    "read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range dup dup2 dup3",
    "pipe pipe2 select pselect6 poll ppoll epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2",
    "eventfd eventfd2 timerfd_create timerfd_settime timerfd_gettime sendfile copy_file_range",
    # Files, by name: Landlock says which. Not truncate, which Landlock does not know before Linux 6.2; not chmod,
    # chown, utime and extended attributes, which it does not know at all.
    "creat stat fstat lstat newfstatat statx statfs fstatfs access faccessat faccessat2 readlink readlinkat getcwd",
    "chdir fchdir mkdir mkdirat rmdir rename renameat renameat2 unlink unlinkat symlink symlinkat umask",
    "getdents getdents64 ftruncate fallocate fsync fdatasync flock",
    # Memory and threads.
    "brk mmap mprotect munmap mremap madvise msync futex set_robust_list get_robust_list set_tid_address rseq",
    "membarrier arch_prctl sched_yield sched_getaffinity sched_getparam sched_getscheduler sched_get_priority_max",
    "sched_get_priority_min getcpu",
    # Time and signals to itself.
    "nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times getitimer setitimer alarm pause",
    "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack restart_syscall",
    # Facts about itself.
    "getpid gettid getppid getuid geteuid getgid getegid getresuid getresgid getgroups getpgrp getpgid getsid",
    "getrusage getrlimit setrlimit getpriority uname sysinfo getrandom exit exit_group wait4 waitid",
    # A connected pair of sockets, which asyncio wakes itself with.
    "recvfrom recvmsg sendto sendmsg shutdown getsockopt setsockopt getsockname getpeername",
)

_CLONE_THREAD: Final = 0x00010000
_O_ACCMODE_AND_TRUNC: Final = 0o1003
_OPEN_WITHOUT_SILENT_TRUNCATION: Final = (0, 1, 2, 3, 0o1001, 0o1002)
"""Not O_RDONLY with O_TRUNC: it truncates, and Landlock before Linux 6.2 takes it for reading."""

_ALLOWED_IF: Final[dict[str, tuple[_Condition, ...]]] = {
    "open": (_Condition(1, _OPEN_WITHOUT_SILENT_TRUNCATION, _O_ACCMODE_AND_TRUNC),),
    "openat": (_Condition(2, _OPEN_WITHOUT_SILENT_TRUNCATION, _O_ACCMODE_AND_TRUNC),),
    # A thread, never a process: then ending one process ends everything, and one memory limit bounds everything.
    "clone": (_Condition(0, (_CLONE_THREAD,), _CLONE_THREAD),),
    "kill": (_Condition(0, (None,)),),
    "tgkill": (_Condition(0, (None,)),),
    "prlimit64": (_Condition(0, (0,)),),
    # Duplicating, flags and locks; not F_SETOWN and F_SETSIG, which would send signals to others.
    "fcntl": (_Condition(1, (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)),),
    # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
    "ioctl": (_Condition(1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),),
    # PR_SET_NAME, PR_GET_NAME, PR_SET_VMA (names of memory areas, by glibc).
    "prctl": (_Condition(0, (15, 16, 0x53564D41)),),
    # AF_UNIX and SOCK_STREAM: a datagram socket could send to any address.
    "socketpair": (_Condition(0, (1,)), _Condition(1, (1,), 0xF)),
}

_UNKNOWN: Final = ("clone3", "openat2")
"""Their arguments lie behind a pointer; told that there is no such call, glibc uses `clone` and `openat`."""

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16
_X32_BIT: Final = 0x40000000
"""System calls of the x32 ABI, which have the same architecture and other numbers."""


def compile_filter(machine: str) -> SyscallFilter:
    """The filter for a kind of machine, as `os.uname().machine` names it.

    Raises:
        ValueError: the filter does not know this kind of machine.
    """
    if machine not in _MACHINES:
        raise ValueError(
            f"system calls of {machine} are not known here, only those of {', '.join(_MACHINES)}"
        )
    name, architecture = _MACHINES[machine]
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE_OFFSET),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER_OFFSET),
    ]
    if machine == "x86_64":
        program += [(_JUMP_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, _KILL_PROCESS)]
    own_process: list[int] = []
    for call in " ".join(_ALLOWED).split():
        if (number := _number(call, name)) is not None:
            program += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for call, conditions in _ALLOWED_IF.items():
        if (number := _number(call, name)) is not None:
            checks = _checks(conditions)
            program.append((_JUMP_EQUAL, 0, len(checks), number))
            own_process += [len(program) + i for i, check in enumerate(checks) if check[3] == _OWN_PROCESS]
            program += checks
    for call in _UNKNOWN:
        if (number := _number(call, name)) is not None:
            program += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    program.append((_RETURN, 0, 0, _ERRNO | errno.EPERM))
    return SyscallFilter(tuple(program), tuple(own_process))


_OWN_PROCESS: Final = -1


def _checks(conditions: tuple[_Condition, ...]) -> list[Instruction]:
    """Returns "allowed" where all conditions hold, else "not permitted"."""
    program: list[Instruction] = []
    for condition in conditions:
        program += [
            (
                _LOAD,
                0,
                0,
                _ARGUMENTS_OFFSET + 8 * condition.index,
            ),  # the low half: both machines are little-endian
            (_AND, 0, 0, condition.mask),
        ]
        for left, value in zip(range(len(condition.values), 0, -1), condition.values, strict=True):
            # To behind the refusal that follows the last value.
            program.append((_JUMP_EQUAL, left, 0, _OWN_PROCESS if value is None else value))
        program.append((_RETURN, 0, 0, _ERRNO | errno.EPERM))
    program.append((_RETURN, 0, 0, _ALLOW))
    return program


def _number(call: str, machine: str) -> int | None:
    """The call's number; None where this kind of machine has no such call."""
    try:
        return int(syscalls().get(call, machine))
    except NotSupportedSystemCall:
        return None
    except NoSuchSystemCall:
        raise ValueError(f"system-calls knows no {call!r}") from None
