from __future__ import annotations

import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings

from steering_pts.errors import OracleError
from steering_pts.oracles import Judgement, Verdict, make_oracle
from steering_pts.oracles.python import PythonOracle
from steering_pts.oracles.python.sandbox import Sandbox, SandboxResult
from tests.support.programs import PROMPT, TEXTS, human_eval_problem, mbpp_problem, problem_with
from tests.support.texts import check_watcher, cut_points

FOUR = problem_with("assert f(2) == 4")


@pytest.fixture(scope="module")
def oracle() -> Iterator[PythonOracle]:
    with PythonOracle(seconds=20, workers=2) as oracle:
        yield oracle


def verdict(oracle: PythonOracle, tests: str, program: str) -> Verdict:
    judgement = oracle.judge(problem_with(tests), textwrap.dedent(program))
    assert not judgement.failed, judgement.explanation
    return judgement.verdict


# Layouts.


def test_human_eval_continuations_and_whole_functions_are_judged(oracle: PythonOracle) -> None:
    problem = human_eval_problem(PROMPT, "def check(candidate):\n    assert candidate(2) == 4\n", "f")

    for right in (
        "    return 2 * x\n",
        f"```python\n{PROMPT}    return x + x\n```",
        "```\ndef f(x):\n    return 2 * x\n```",
    ):
        assert oracle.judge(problem, right).verdict is Verdict.CORRECT
    for wrong in ("    return x\n", "I do not know.", ""):
        assert oracle.judge(problem, wrong).verdict is Verdict.INCORRECT


def test_what_a_human_eval_prompt_defines_can_not_be_redefined_by_the_program(oracle: PythonOracle) -> None:
    prompt = "def same(a, b):\n    return a == b\n\n\ndef f(x):\n    '''Twice x.'''\n"
    problem = human_eval_problem(prompt, "def check(c):\n    assert same(c(2), 4)\n", "f")

    assert oracle.judge(problem, "    return 2 * x\n").verdict is Verdict.CORRECT
    fake = "```python\ndef same(a, b):\n    return True\ndef f(x):\n    return 5\n```"
    assert oracle.judge(problem, fake).verdict is Verdict.INCORRECT


def test_mbpp_lists_are_judged(oracle: PythonOracle) -> None:
    problem = mbpp_problem(["assert f(two) == 4", "assert set(f([1])) == {1}"], "two = 2")

    assert oracle.judge(problem, "def f(x): return x * 2").verdict is Verdict.CORRECT
    assert oracle.judge(problem, "def f(x): return 4").verdict is Verdict.INCORRECT


# Verdicts and explanations.


@pytest.mark.parametrize(
    ("program", "explanation"),
    [
        ("def f(x): return 5", "AssertionError in the tests' line 1: assert f(2) == 4"),
        (
            "def f(x): return 1 / 0",
            "ZeroDivisionError: division by zero in the tests' line 1: assert f(2) == 4",
        ),
        (
            "def f(x): return 4  # \ud800",
            "UnicodeEncodeError: 'utf-8' codec can't encode character '\\ud800' in position 22: surrogates not allowed",
        ),
        ("def f(x:", "SyntaxError: '(' was never closed (<program>, line 1)"),
        ("raise ValueError('no')", "ValueError: no"),
        ("def g(x): return 4", "NameError: name 'f' is not defined in the tests' line 1: assert f(2) == 4"),
        ("import sys\ndef f(x): sys.exit(0)", "the program raised SystemExit"),
        ("import os\ndef f(x): os._exit(3)", "the program ended before the tests did (exit code 3)"),
        ("import numpy\ndef f(x): return 4", "ModuleNotFoundError: No module named 'numpy'"),
        ("f = 4", "TypeError: 'int' object is not callable in the tests' line 1: assert f(2) == 4"),
        (
            "class E(KeyError): pass\ndef f(x): raise E('key')",
            "E: 'key' in the tests' line 1: assert f(2) == 4",
        ),
    ],
)
def test_a_program_is_incorrect_with_the_reason(oracle: PythonOracle, program: str, explanation: str) -> None:
    judgement = oracle.judge(FOUR, program)

    assert judgement == Judgement(Verdict.INCORRECT, program, explanation)


def test_a_correct_program_is_correct(oracle: PythonOracle) -> None:
    assert oracle.judge(FOUR, "def f(x): return 4") == Judgement(
        Verdict.CORRECT, "def f(x): return 4", "all tests passed"
    )


@pytest.mark.parametrize(
    ("tests", "explanation"),
    [
        ("import numpy\nassert f(2) == 4", "the tests can't be run: No module named 'numpy'"),
        (
            "class A: pass\nassert f(A()) == 4",
            "the tests hand the program a A, which can't leave their process",
        ),
        ("try:\n    f(object())\nexcept BaseException:\n    pass", "the tests hand the program a object"),
    ],
)
def test_tests_that_can_not_be_run_are_a_failure_of_the_oracle(
    oracle: PythonOracle, tests: str, explanation: str
) -> None:
    judgement = oracle.judge(problem_with(tests), "def f(x): return 4")

    assert judgement.failed
    assert judgement.explanation.startswith(explanation)


def test_a_program_too_long_to_be_one_is_incorrect(oracle: PythonOracle) -> None:
    assert oracle.judge(FOUR, "x = 1\n" * 100_000).explanation == "too long to be a program"


def test_what_stands_under_main_is_not_run(oracle: PythonOracle) -> None:
    assert (
        verdict(oracle, "assert f() == 1", "def f(): return 1\nif __name__ == '__main__':\n    1 / 0")
        == "correct"
    )


def test_chance_and_the_order_of_sets_are_the_same_every_time() -> None:
    program = (
        "import random\nitems = list({str(i) for i in range(50)})\ndef f(): return [random.random(), *items]"
    )
    seen = set()
    for _ in range(2):
        with PythonOracle(workers=1) as oracle:
            judgement = oracle.judge(problem_with("assert not f(), f()"), program)
            seen.add(judgement.explanation)

    assert len(seen) == 1


# Values and objects that cross between the two processes.


@pytest.mark.parametrize(
    "value",
    [
        "None", "True", "-1", "10**5000", "1.5", "float('inf')", "1j", "'\\ud800 \\n'", "b'\\x00'", "bytearray(b'a')",
        "[1, [2]]", "(1, (2,))", "{1: {2: 3}}", "{1, 2}", "frozenset({1})", "range(2, 9, 3)", "int", "ValueError",
    ],
)  # fmt: skip
def test_plain_values_arrive_as_they_are(oracle: PythonOracle, value: str) -> None:
    tests = f"value = {value}\nassert f(value) == value\nassert g() == value\nassert type(g()) is type(value)"

    assert verdict(oracle, tests, f"def f(x): return x\ndef g(): return {value}") is Verdict.CORRECT


@pytest.mark.parametrize(
    "value",
    [
        "fractions.Fraction(1, 3)", "decimal.Decimal('1.10')", "datetime.date(2024, 2, 29)",
        "datetime.datetime(2024, 2, 29, 1, 2, 3)", "datetime.time(1)", "datetime.timedelta(1, 2, 3)",
        "collections.deque([1])", "collections.Counter('aab')", "collections.OrderedDict(a=1)",
    ],
)  # fmt: skip
def test_values_of_the_standard_library_are_equal(oracle: PythonOracle, value: str) -> None:
    program = f"import collections, datetime, decimal, fractions\ndef f(): return {value}"

    assert verdict(oracle, f"assert f() == {value}", program) is Verdict.CORRECT


def test_the_difference_between_kinds_is_kept(oracle: PythonOracle) -> None:
    assert verdict(oracle, "assert f() == (1, 2)", "def f(): return [1, 2]") is Verdict.INCORRECT
    assert verdict(oracle, "assert f() is True", "def f(): return 1") is Verdict.INCORRECT
    assert verdict(oracle, "assert isinstance(f(), int)", "def f(): return 1.0") is Verdict.INCORRECT


def test_generators_are_iterated_in_their_own_process(oracle: PythonOracle) -> None:
    program = "import itertools\ndef f():\n    yield from itertools.count()\ndef g(): return zip('ab', 'cd')"

    tests = "i = f()\nassert [next(i), next(i)] == [0, 1]\nassert list(g()) == [('a', 'c'), ('b', 'd')]"
    assert verdict(oracle, tests, program) is Verdict.CORRECT


def test_classes_and_their_objects_are_used_from_afar(oracle: PythonOracle) -> None:
    program = """
        class Stack:
            def __init__(self, *items): self.items = list(items)
            def push(self, item): self.items.append(item); return self
            def __len__(self): return len(self.items)
            def __getitem__(self, index): return self.items[index]
            def __eq__(self, other): return isinstance(other, Stack) and self.items == other.items
            def __add__(self, other): return Stack(*self.items, *other.items)
            def __repr__(self): return f"Stack{tuple(self.items)}"
            def __contains__(self, item): return item in self.items
            def __enter__(self): return self
            def __exit__(self, *error): self.items.clear()
        class Full(Exception): pass
        def fail(): raise Full("up to here")
    """
    tests = """
        s = Stack(1)
        assert isinstance(s, Stack) and not isinstance(3, Stack) and issubclass(Stack, Stack)
        assert len(s.push(2)) == 2 and s[1] == 2 and 2 in s and 3 not in s
        assert s == Stack(1, 2) and s != Stack(1) and s + Stack(3) == Stack(1, 2, 3)
        assert s != [1, 2]
        assert repr(s) == "Stack(1, 2)" and [*s] == [1, 2]
        s.items = [9]
        assert s.items == [9]
        with s as t:
            assert t == s
        assert len(s) == 0
        try:
            fail()
        except Full as error:
            assert str(error) == "up to here"
        else:
            assert False
    """
    assert verdict(oracle, tests, program) is Verdict.CORRECT


def test_objects_of_subclasses_equal_what_they_are_underneath(oracle: PythonOracle) -> None:
    program = (
        "from collections import namedtuple\nPoint = namedtuple('Point', 'x y')\ndef f(): return Point(1, 2)"
    )

    assert (
        verdict(oracle, "assert f() == (1, 2) and f().x == 1 and f() == Point(1, 2)", program)
        is Verdict.CORRECT
    )


def test_functions_cross_in_both_directions(oracle: PythonOracle) -> None:
    program = """
        def compose(f, g): return lambda x: f(g(x))
        def apply(f, items): return [f(item) for item in items]
    """
    tests = """
        assert compose(lambda x: x + 1, lambda x: 2 * x)(5) == 11
        assert apply(str, [1, 2]) == ["1", "2"] and apply(len, ["ab"]) == [2]
        assert apply(compose(abs, int), ["-3"]) == [3]
    """
    assert verdict(oracle, tests, program) is Verdict.CORRECT


def test_work_on_arguments_in_place_is_seen_by_the_tests(oracle: PythonOracle) -> None:
    program = """
        def sort(items): items.sort()
        def put(table, key): table[key] = 1
        def leave(items): return None
    """
    tests = """
        items, table, same = [3, 1], {}, [2, 1]
        assert sort(items) is None and items == [1, 3]
        put(table, "a")
        assert table == {"a": 1}
        leave(same)
        assert same == [2, 1]
    """
    assert verdict(oracle, tests, program) is Verdict.CORRECT


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        ("def f(a): a.sort()", "x = [2, 1]\nf(a=x)\nassert x == [1, 2]"),
        ("def f(a): a[0].sort()", "x = ([2, 1],)\nf(x)\nassert x == ([1, 2],)"),
        ("def f(a): a['k'].add(2)", "s = {1}\nf({'k': s})\nassert s == {1, 2}"),
        ("def f(a): a.reverse()", "x = [[1], [2]]\nfirst = x[0]\nf(x)\nassert x == [[2], [1]] and x[1] is first"),
        ("def f(a): a.append(a)", "x = [1]\nf(x)\nassert len(x) == 2 and x[1] is x"),
        ("def f(a): a['a'] = 1", "import collections as c\nx = c.Counter('aab')\nf(x)\nassert x == c.Counter('ab')"),
        ("def f(a): a[0] = b'b'[0]", "x = bytearray(b'a')\nf(a=x)\nassert x == b'b'"),
    ],
)  # fmt: skip
def test_work_in_place_is_seen_wherever_in_the_arguments(
    oracle: PythonOracle, program: str, tests: str
) -> None:
    assert verdict(oracle, tests, program) is Verdict.CORRECT
    assert verdict(oracle, tests, "def f(a): pass") is Verdict.INCORRECT


def test_an_argument_that_is_returned_is_the_tests_own(oracle: PythonOracle) -> None:
    tests = "x = [1]\nassert f(x) is x and f([x, [2]])[0] is x and x == [1]"

    assert verdict(oracle, tests, "def f(a): return a") is Verdict.CORRECT
    assert verdict(oracle, tests, "def f(a): return list(a)") is Verdict.INCORRECT


def test_what_the_program_hands_to_the_tests_functions_is_as_it_has_made_it(oracle: PythonOracle) -> None:
    tests = "x = [1]\nassert f(len, x) == 2 and x == [1, 3]"

    assert verdict(oracle, tests, "def f(g, a): a.append(3); return g(a)") is Verdict.CORRECT


def test_the_built_in_exceptions_are_the_built_in_ones(oracle: PythonOracle) -> None:
    tests = "try:\n    f()\nexcept LookupError as error:\n    assert error.args == ('k',)\nelse:\n    assert False"

    assert verdict(oracle, tests, "def f(): raise KeyError('k')") is Verdict.CORRECT
    assert verdict(oracle, tests, "def f(): raise ValueError('k')") is Verdict.INCORRECT


def test_arithmetic_with_an_object_is_never_a_number_that_the_program_chose(oracle: PythonOracle) -> None:
    program = "class A:\n    def __sub__(self, other): return 0\n    def __abs__(self): return 0\ndef f(x): return A()"

    assert verdict(oracle, "assert abs(f(2) - 4.0) < 1e-6", program) is Verdict.INCORRECT
    assert verdict(oracle, "assert math.isclose(f(2), 4.0)", program) is Verdict.INCORRECT


def test_numbers_of_a_kind_of_the_programs_own_can_be_reckoned_with(oracle: PythonOracle) -> None:
    program = """
        class Big:
            def __init__(self, value): self.value = value
            def __add__(self, other): return Big(self.value + getattr(other, "value", other))
            def __int__(self): return self.value
    """
    assert verdict(oracle, "assert int(Big(12) + Big(30)) == 42", program) is Verdict.CORRECT
    assert verdict(oracle, "assert (Big(12) + 30).value == 42", program) is Verdict.CORRECT


# Once, in order, from many threads.


class Counting(Sandbox):
    runs = 0

    def run(self, *arguments: object) -> SandboxResult:
        type(self).runs += 1
        return super().run(*arguments)  # type: ignore[arg-type]


def test_equal_programs_for_the_same_tests_run_once_unless_time_ran_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("steering_pts.oracles.python.oracle.Sandbox", Counting)
    with PythonOracle(seconds=1, workers=1) as oracle:
        before = Counting.runs
        first = oracle.judge(FOUR, "def f(x): return 4")
        assert oracle.judge(FOUR, "def f(x): return 4") == first
        assert Counting.runs - before == 1
        for introduction in ("So:", "Once more:"):
            oracle.judge(FOUR, f"{introduction}\n```\ndef f(x): return 5\n```\n")
        assert Counting.runs - before == 2
        oracle.judge(problem_with("assert f(3) == 4"), "def f(x): return 4")
        assert Counting.runs - before == 3
        for _ in range(2):
            oracle.judge(FOUR, "while True: pass")
        assert Counting.runs - before == 5


def test_many_are_judged_at_a_time_and_come_in_order(oracle: PythonOracle) -> None:
    items = [(FOUR, f"def f(x): return {number}") for number in range(30)]

    judgements = oracle.judge_many(items)

    assert [judgement.verdict is Verdict.CORRECT for judgement in judgements] == [n == 4 for n in range(30)]


def test_any_thread_may_judge(oracle: PythonOracle) -> None:
    with ThreadPoolExecutor(8) as pool:
        verdicts = list(
            pool.map(lambda n: oracle.judge(FOUR, f"def f(x): return 2 * x  # {n}").verdict, range(24))
        )

    assert verdicts == [Verdict.CORRECT] * 24


def test_a_problem_without_tests_is_a_misfit_and_a_failure_among_many(oracle: PythonOracle) -> None:
    bad = problem_with("18")

    assert oracle.misfit(FOUR) is None
    assert "tests nothing" in str(oracle.misfit(bad))
    assert oracle.judge_many([(bad, "x"), (FOUR, "def f(x): return 4")])[0].failed
    with pytest.raises(OracleError, match="tests nothing"):
        oracle.judge(bad, "x")


@settings(max_examples=25)
@given(TEXTS, TEXTS, cut_points)
def test_the_watcher_is_never_early(
    oracle: PythonOracle, text: str, continuation: str, points: list[int]
) -> None:
    check_watcher(oracle, FOUR, text, continuation, points)


# Options.


def test_options_are_made_checked_and_told() -> None:
    with make_oracle(
        "python", assignments=["seconds=3", "memory_mb=256", "timeout=incorrect", "workers=1"]
    ) as oracle:  # type: ignore[attr-defined]
        assert oracle.options == {
            "seconds": 3.0,
            "memory_mb": 256,
            "threads": 16,
            "file_mb": 16,
            "timeout": "incorrect",
            "workers": 1,
            "unsafe": False,
        }


def test_all_that_is_wrong_with_options_is_said_at_once() -> None:
    with pytest.raises(OracleError, match=r"(?s)'memory_mb'.*'seconds'.*'timeout'"):
        make_oracle("python", assignments=["seconds=0", "memory_mb=1", "timeout=never"])
