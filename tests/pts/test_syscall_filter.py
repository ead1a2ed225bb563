"""The filter's instructions, run by a small interpreter of classic BPF, for both machines on either."""

from __future__ import annotations

import errno

import pytest
from system_calls import syscalls

from steering_pts.oracles.python.syscall_filter import SyscallFilter, compile_filter

MACHINES = {"x86_64": ("x86_64", 0xC000003E), "aarch64": ("arm64", 0xC00000B7)}
ALLOW, KILL = 0x7FFF0000, 0x80000000
REFUSED, UNKNOWN = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
OWN = 4242


def run(program: SyscallFilter, number: int, architecture: int, arguments: tuple[int, ...]) -> int:
    data = {0: number, 4: architecture}
    for index, argument in enumerate((*arguments, *[0] * (6 - len(arguments)))):
        data[16 + 8 * index], data[20 + 8 * index] = argument & 0xFFFFFFFF, argument >> 32 & 0xFFFFFFFF
    accumulator, position = 0, 0
    while True:
        code, if_true, if_false, operand = program.instructions[position]
        if position in program.own_process:
            operand = OWN
        position += 1
        if code == 0x20:
            accumulator = data[operand]
        elif code == 0x54:
            accumulator &= operand
        elif code == 0x06:
            return operand
        else:
            holds = accumulator == operand if code == 0x15 else accumulator >= operand
            assert code in {0x15, 0x35}
            position += if_true if holds else if_false


def answer(machine: str, call: str, *arguments: int) -> int:
    name, architecture = MACHINES[machine]
    return run(compile_filter(machine), syscalls().get(call, name), architecture, arguments)


both = pytest.mark.parametrize("machine", MACHINES)


@both
@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("read", ()),
        ("write", ()),
        ("mmap", ()),
        ("futex", ()),
        ("exit_group", ()),
        ("openat", (0, 0, 0)),
        ("openat", (0, 0, 0o1101)),
        ("clone", (0x3D0F00,)),  # what glibc passes for a thread
        ("kill", (OWN, 15)),
        ("tgkill", (OWN, OWN, 6)),
        ("prlimit64", (0, 7, 0, 1)),
        ("fcntl", (1, 4, 0)),
        ("socketpair", (1, 0o2000001, 0)),
    ],
)
def test_allowed(machine: str, call: str, arguments: tuple[int, ...]) -> None:
    assert answer(machine, call, *arguments) == ALLOW


@both
@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("execve", ()),
        ("execveat", ()),
        ("socket", (2, 1, 0)),
        ("connect", ()),
        ("bind", ()),
        ("ptrace", ()),
        ("process_vm_readv", ()),
        ("pidfd_open", ()),
        ("pidfd_getfd", ()),
        ("pidfd_send_signal", ()),
        ("setuid", (0,)),
        ("mount", ()),
        ("unshare", ()),
        ("setns", ()),
        ("bpf", ()),
        ("keyctl", ()),
        ("io_uring_setup", ()),
        ("io_uring_enter", ()),
        ("userfaultfd", ()),
        ("perf_event_open", ()),
        ("open_by_handle_at", ()),
        ("memfd_create", ()),
        ("truncate", ()),
        ("fchmodat", ()),
        ("linkat", ()),
        ("seccomp", ()),
        ("rt_sigqueueinfo", (OWN,)),
        ("clone", (17,)),  # what fork is
        ("clone", (0x4111,)),  # what vfork is
        ("openat", (0, 0, 0o1000)),
        ("kill", (1, 9)),
        ("kill", (-1, 9)),
        ("kill", (0, 9)),
        ("tgkill", (1, 1, 9)),
        ("prlimit64", (1, 7, 0, 1)),
        ("fcntl", (0, 8, 1)),
        ("fcntl", (0, 10, 9)),
        ("ioctl", (0, 0x5412, 0)),  # TIOCSTI
        ("prctl", (4, 1)),
        ("socketpair", (1, 2, 0)),
        ("socketpair", (16, 1, 0)),
    ],
)
def test_refused(machine: str, call: str, arguments: tuple[int, ...]) -> None:
    assert answer(machine, call, *arguments) == REFUSED


@both
@pytest.mark.parametrize("call", ["clone3", "openat2"])
def test_told_to_be_unknown(machine: str, call: str) -> None:
    assert answer(machine, call) == UNKNOWN


@both
def test_a_call_of_a_later_kernel_is_refused(machine: str) -> None:
    assert run(compile_filter(machine), 10_000, MACHINES[machine][1], ()) == REFUSED


@both
def test_another_architecture_is_killed(machine: str) -> None:
    assert run(compile_filter(machine), 0, 0x40000003, ()) == KILL  # i386, by int 0x80


def test_the_other_numbers_of_x32_are_killed() -> None:
    assert run(compile_filter("x86_64"), 0x40000000, MACHINES["x86_64"][1], ()) == KILL


def test_no_program_is_longer_than_the_kernel_takes() -> None:
    assert all(len(compile_filter(machine).instructions) <= 4096 for machine in MACHINES)


def test_only_these_machines_are_known() -> None:
    with pytest.raises(
        ValueError, match="system calls of riscv64 are not known here, only those of x86_64, aarch64"
    ):
        compile_filter("riscv64")
