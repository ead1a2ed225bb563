"""What a command imports: people who look at a run, or for help, don't wait for torch."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from steering_pts.cli.app import COMMANDS, command, documentation
from steering_pts.cli.run import RunFolder
from tests.support.pts import run_pts

HEAVY = ("torch", "transformers", "nnsight", "sklearn", "matplotlib", "datasets")


def test_help_and_a_look_at_a_run_import_nothing_that_takes_seconds(finished_run: RunFolder) -> None:
    for arguments in (["--help"], ["status", str(finished_run.path)], ["show", str(finished_run.path)]):
        program = (
            f"import sys; from steering_pts.cli import main; sys.argv = {['pts', *arguments]}\n"
            "try: main()\n"
            "except SystemExit as end: assert not end.code\n"
            f"print(*({{*{HEAVY}}} & set(sys.modules)), file=sys.stderr)"
        )
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert (run.stderr.strip(), bool(run.stdout)) == ("", True), arguments


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_listed_as_it_documents_itself(name: str) -> None:
    own = command(name)

    assert own.name == name
    assert documentation(name) == inspect.cleandoc(own.help or "")
    assert documentation(name).split("\n\n")[0].replace("\n", " ") in " ".join(
        run_pts("--help").out.replace("│", " ").split()
    )


def test_an_unknown_command_is_refused() -> None:
    ended = run_pts("discovr")

    assert ended.code == 2
    assert "No such command 'discovr'" in ended.err
