"""The tests that a problem comes with, in the layouts of HumanEval and MBPP, or as the gold answer itself."""

from __future__ import annotations

import ast
import builtins
import json
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from steering_pts.data import Problem
from steering_pts.errors import OracleError
from steering_pts.oracles.python.inside.testing import Suite


@dataclass(frozen=True, slots=True)
class ProblemTests:
    """A problem's tests, and how a completion becomes a program.

    `wanted` are the names that a program must define. `prompt` is the code that completions continue, empty where
    there is none; `head` is the part of it before the function that is asked for.
    """

    suite: Suite
    wanted: tuple[str, ...]
    prompt: str
    head: str


def problem_tests(problem: Problem) -> ProblemTests:
    """The tests of a problem.

    HumanEval: fields `test` (defines `check`) and `entry_point`; the prompt is the field `prompt`, or the question.
    MBPP: field `test_list`, after `test_setup_code` and `test_imports` where they are given. Else the gold answer is
    the tests.

    Raises:
        OracleError: it has no tests, or what should be tests is no Python code or asks nothing of the program.
    """
    return _problem_tests(problem.id, problem.question, problem.answer, tuple(sorted(problem.fields.items())))


@lru_cache(maxsize=4096)
def _problem_tests(id_: str, question: str, answer: str, items: tuple[tuple[str, str], ...]) -> ProblemTests:
    fields = dict(items)
    try:
        if "test" in fields and "entry_point" in fields:
            return _human_eval(fields["test"], fields["entry_point"].strip(), fields.get("prompt", question))
        if "test_list" in fields:
            return _mbpp(fields)
        return _named("", answer)
    except (SyntaxError, ValueError) as error:
        raise OracleError(f"problem {id_} has no tests for Python code: {error}; {_CHOICES}") from error


_CHOICES: Final = (
    "expected are the fields test and entry_point (HumanEval), test_list (MBPP), or tests as the gold answer"
)


def _human_eval(test: str, entry_point: str, prompt: str) -> ProblemTests:
    if not entry_point.isidentifier():
        raise ValueError(f"entry_point is {entry_point!r:.80}, which is no name")
    tests = f"{test.rstrip()}\n\ncheck({entry_point})\n"
    ast.parse(tests)
    start = _definition(prompt, entry_point)
    # What the prompt defines beside the function is the problem's word, not the program's.
    preamble = prompt if start is not None and _is_code(prompt) else ""
    suite = Suite(preamble, tests, (entry_point,), _modules(tests, preamble))
    return ProblemTests(suite, (entry_point,), prompt if start is not None else "", prompt[: start or 0])


def _mbpp(fields: dict[str, str]) -> ProblemTests:
    setup = "\n".join([*_texts(fields, "test_imports"), fields.get("test_setup_code", "")]).strip()
    tests = _texts(fields, "test_list")
    if not tests:
        raise ValueError("test_list is empty")
    return _named(setup, "\n".join(tests) + "\n")


def _texts(fields: dict[str, str], name: str) -> list[str]:
    content = fields.get(name, "").strip() or "[]"
    try:
        texts = json.loads(content)
    except ValueError:
        return [content]  # a text that is no list: one piece of code
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} must be a list of texts, not {content:.80}")
    return texts


def _named(preamble: str, tests: str) -> ProblemTests:
    """Tests that ask for whatever they use and nothing else defines."""
    tree = ast.parse(tests)
    if not any(isinstance(node, ast.Assert | ast.Raise | ast.Call) for node in ast.walk(tree)):
        raise ValueError(f"{tests!r:.80} tests nothing")
    modules = _modules(tests, preamble)
    known = _defined(tree) | _defined(ast.parse(preamble)) | vars(builtins).keys() | set(modules)
    wanted = tuple(sorted(_used(tree) - known - {"__name__", "__file__"}))
    if not wanted:
        raise ValueError(f"{tests!r:.80} asks nothing of the program")
    return ProblemTests(Suite(preamble, tests, wanted, modules), wanted, "", "")


def _modules(tests: str, preamble: str) -> tuple[str, ...]:
    """Modules of the standard library of which the tests use something without having imported them.

    The tests must not take them from the program, whose `math.isclose` could be anything.
    """
    tree = ast.parse(tests)
    owners = {
        node.value.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    defined = _defined(tree) | (_defined(ast.parse(preamble)) if _is_code(preamble) else set())
    return tuple(sorted((owners & sys.stdlib_module_names) - defined))


def _used(tree: ast.AST) -> set[str]:
    return {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }


def _defined(tree: ast.AST) -> set[str]:
    """Every name that the code gives a value anywhere."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                names.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {alias.asname or alias.name.partition(".")[0] for alias in aliases}
            case ast.ExceptHandler(name=str(name)):
                names.add(name)
    return names


def _definition(prompt: str, entry_point: str) -> int | None:
    """Where in the prompt the last line stands that begins the function; None where none does."""
    start = None
    offset = 0
    for line in prompt.splitlines(keepends=True):
        if line.startswith((f"def {entry_point}(", f"async def {entry_point}(")):
            start = offset
        offset += len(line)
    return start


def _is_code(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True
