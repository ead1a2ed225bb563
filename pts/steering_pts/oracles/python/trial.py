"""A program that tries what no program may do, run before any other: the sandbox is believed when it has held."""

from __future__ import annotations

from typing import Final

from steering_pts.oracles.python.inside.testing import Suite
from steering_pts.oracles.python.sandbox import SandboxResult

TRIAL_PROGRAM: Final = '''
import ctypes, json, os, random, resource, socket

def attempts():
    """What could be done that must not be."""
    done = []
    for name, attempt in (
        ("use the network", lambda: socket.socket().close()),
        ("start a process", lambda: os.fork() or os._exit(0)),
        ("send signals to other processes", lambda: os.kill(os.getppid(), 0)),
        ("read files", lambda: os.open("/etc/passwd", os.O_RDONLY)),
        ("write outside its folder", lambda: os.open("/tmp", os.O_RDWR | os.O_TMPFILE)),
        ("change modes of files", lambda: os.chmod(".", 0o700)),
        ("raise its limits", lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1))),
        ("become another user", lambda: os.setuid(os.getuid())),
    ):
        try:
            attempt()
        except (OSError, ValueError):
            continue
        done.append(name)
    return done

def write_and_read(text):
    with open("trial", "w") as file:
        file.write(text)
    with open("trial") as file:
        return file.read()
'''

TRIAL_SUITE: Final = Suite(
    preamble="",
    tests=(
        "assert write_and_read('text') == 'text', 'can not use its own folder'\n"
        "done = attempts()\n"
        "assert not done, 'can ' + ', '.join(done)\n"
    ),
    names=("attempts", "write_and_read"),
    modules=(),
)


def trial_faults(result: SandboxResult, *, unsafe: bool) -> list[str]:
    """What speaks against the sandbox; if unsafe, only what keeps programs from running at all."""
    limit, report = result.outcome.limit, result.report
    if report is None:
        output = result.outcome.output.strip()[-500:]
        return [f"a trial program did not come to its end{f' (too much {limit})' if limit else ''}: {output}"]
    if report.outcome == "passed" or (unsafe and ": can " in report.explanation):
        return []
    return [f"a trial program failed: {report.explanation}"]
