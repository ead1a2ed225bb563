from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering_pts.data import Problem
from steering_pts.errors import OracleError
from steering_pts.oracles import Verdict, judge_all, make_oracle
from steering_pts.oracles.judge import TEMPLATE, JudgeOracle, read_verdict
from steering_pts.oracles.judge_endpoint import MAX_ANSWER_BYTES, Endpoint
from steering_pts.oracles.registry import oracle_of_settings, oracle_settings
from tests.support.chat_server import (
    Answer,
    ChatServer,
    chat_server,
    drips,
    hangs,
    hangs_up,
    raw,
    says,
    status,
)

PROBLEM = Problem("p", "What is 9 * 2?", "18")
KEY = "sk-very-secret-0123456789"
Judge = Callable[..., JudgeOracle]
Serve = Callable[..., ChatServer]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def serve(stack: ExitStack) -> Serve:
    """Starts a server that answers as it is told."""
    return lambda *answers: stack.enter_context(chat_server(*answers))


@pytest.fixture
def judge(stack: ExitStack) -> Judge:
    """Makes a judge at a server, without waits between attempts."""

    def make(server: ChatServer, **options: Any) -> JudgeOracle:
        defaults = {"retries": 2, "backoff": 0.0, "timeout": 10.0}
        oracle = JudgeOracle(server.url, "grader", **{**defaults, **options})
        return stack.enter_context(closing(oracle))

    return make


# --- asking -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("It matches.\nCORRECT", Verdict.CORRECT),
        ("It differs.\nINCORRECT", Verdict.INCORRECT),
        ("UNSURE", Verdict.CENSORED),
    ],
)
def test_the_models_word_is_the_verdict(serve: Serve, judge: Judge, answer: str, verdict: Verdict) -> None:
    judgement = judge(serve(says(answer))).judge(PROBLEM, "18")

    assert (judgement.verdict, judgement.failed) == (verdict, False)
    assert judgement.explanation == f"the judge: {' '.join(answer.split())}"


def test_it_asks_one_question_at_temperature_0(serve: Serve, judge: Judge) -> None:
    server = serve(says("CORRECT"))
    judge(server).judge(PROBLEM, "It is $18.")

    (request,) = server.requests
    assert server.paths == ["/v1/chat/completions"]
    assert (request["model"], request["temperature"]) == ("grader", 0)
    (message,) = request["messages"]
    assert message["role"] == "user"
    for part in (
        "What is 9 * 2?",
        "<reference>\n18\n</reference>",
        "It is $18.",
        "CORRECT, INCORRECT, or UNSURE",
    ):
        assert part in message["content"]


def test_a_template_of_ones_own_is_sent(serve: Serve, judge: Judge, tmp_path: Path) -> None:
    server = serve(says("CORRECT"))
    path = tmp_path / "prompt.txt"
    path.write_text("Is $completion the same as $gold, for $$1?", encoding="utf-8")
    judge(server, template_file=path).judge(PROBLEM, "$question")

    assert server.requests[0]["messages"][0]["content"] == "Is $question the same as 18, for $1?"


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://h", "http://h/v1/chat/completions"),
        ("http://h/v1/", "http://h/v1/chat/completions"),
        ("https://h:1/api/v3", "https://h:1/api/v3/chat/completions"),
        ("http://h/v1/chat/completions", "http://h/v1/chat/completions"),
    ],
)
def test_the_url_may_be_given_with_or_without_its_end(url: str, asked: str) -> None:
    assert Endpoint(url, "m", None, 1, 0, 0).chat_url() == asked


def test_many_completions_are_asked_about_at_a_time_and_come_in_order(serve: Serve, judge: Judge) -> None:
    def slow(handler: Any) -> None:
        time.sleep(0.05)
        says("CORRECT")(handler)

    server = serve(slow)
    oracle = judge(server, concurrency=4)
    items = [(PROBLEM, str(number), number % 3 == 0) for number in range(20)]

    verdicts = [judgement.verdict for judgement in judge_all(oracle, items)]

    assert verdicts == [Verdict.CENSORED if cut_off else Verdict.CORRECT for _, _, cut_off in items]
    assert len(server.requests) == 13
    assert 1 < server.most_at_once <= 4


def test_verdicts_belong_to_their_completions(serve: Serve, judge: Judge) -> None:
    def grades(handler: Any) -> None:
        content = handler.own["messages"][0]["content"]
        says("CORRECT" if "<answer>\n18\n" in content else "INCORRECT")(handler)

    server = serve(grades)
    completions = ["18", "17", "18", "16", "18"] * 4

    judgements = judge(server).judge_many([(PROBLEM, text) for text in completions])

    assert [j.verdict is Verdict.CORRECT for j in judgements] == [text == "18" for text in completions]


# --- servers that misbehave -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    [status(429), status(429, retry_after="0"), status(500), status(503), hangs_up],
    ids=["429", "429 with Retry-After", "500", "503", "hangs up"],
)
def test_what_may_pass_is_tried_again(serve: Serve, judge: Judge, first: Answer) -> None:
    server = serve(first, first, says("CORRECT"))

    assert judge(server).judge(PROBLEM, "18").verdict is Verdict.CORRECT
    assert len(server.requests) == 3


def test_an_attempt_that_hangs_is_given_up_and_tried_again(serve: Serve, judge: Judge) -> None:
    server = serve(hangs, says("CORRECT"))

    assert judge(server, timeout=0.3).judge(PROBLEM, "18").verdict is Verdict.CORRECT


@pytest.mark.parametrize(
    ("answer", "attempts", "explanation"),
    [
        (status(500, "out of order"), 3, "status 500: out of order"),
        (status(429), 3, "status 429"),
        (status(400, '{"error": "no such model"}'), 1, 'status 400: {"error": "no such model"}'),
        (status(401), 1, "status 401"),
        (status(307, location="http://127.0.0.1:1/"), 1, "status 307"),
        (raw(b"{"), 1, "the answer is not JSON"),
        (raw(b"\xff\xfe"), 1, "the answer is not JSON"),
        (raw(b"[" * 100_000), 1, "the answer is not JSON"),
        (raw(b" " * (MAX_ANSWER_BYTES + 1)), 1, f"the answer is larger than {MAX_ANSWER_BYTES} bytes"),
        (raw(b"[]"), 1, "the answer is not that of a chat completion: it has no choices[0].message.content"),
        (
            raw(b'{"choices": []}'),
            1,
            "the answer is not that of a chat completion: it has no choices[0].mess",
        ),
        (
            raw(b'{"choices": [{"message": {"content": null}}]}'),
            1,
            "the answer is not that of a chat completion",
        ),
        (raw(b'{"choices": [{"text": "CORRECT"}]}'), 1, "the answer is not that of a chat completion"),
    ],
)
def test_an_endpoint_without_an_answer_is_a_failure_with_the_reason(
    serve: Serve, judge: Judge, answer: Answer, attempts: int, explanation: str
) -> None:
    server = serve(answer)
    judgement = judge(server).judge(PROBLEM, "18")

    assert (judgement.verdict, judgement.failed) == (Verdict.CENSORED, True)
    assert judgement.explanation.startswith(f"the judge could not be asked: {explanation}")
    assert len(server.requests) == attempts


@pytest.mark.parametrize("answer", [hangs, drips])
def test_a_server_that_is_slow_for_ever_is_a_failure(serve: Serve, judge: Judge, answer: Answer) -> None:
    judgement = judge(serve(answer), timeout=0.3, retries=1).judge(PROBLEM, "18")

    assert judgement.failed
    assert judgement.explanation == "the judge could not be asked: no answer within 0.3 s"


def test_a_port_where_nobody_listens_is_a_failure(judge: Judge) -> None:
    with chat_server(says("CORRECT")) as gone:
        pass

    judgement = judge(gone).judge(PROBLEM, "18")

    assert judgement.explanation.startswith("the judge could not be asked: ConnectError: ")


def test_one_completion_that_fails_does_not_fail_the_others(serve: Serve, judge: Judge) -> None:
    oracle = judge(serve(says("CORRECT")))

    judgements = oracle.judge_many([(PROBLEM, "18"), (PROBLEM, "\ud800"), (PROBLEM, "18")])

    assert [judgement.failed for judgement in judgements] == [False, True, False]


def test_failures_are_counted_in_the_log(
    serve: Serve, judge: Judge, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "steering_pts"):
        judge_all(judge(serve(status(400))), [(PROBLEM, "18", False), (PROBLEM, "17", True)])

    assert caplog.messages == ["1 of 2 completions: the judge could not be asked: status 400"]


# --- reading the verdict ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        "CORRECT",
        "correct",
        "**CORRECT**",
        "Verdict: CORRECT.",
        "Final verdict: **CORRECT**",
        "It is CORRECT, I think.",
        "Is it INCORRECT? No.\nCORRECT",
        "CORRECT\n\nThe numbers agree.",
        "They do not differ, so it is CORRECT.",
        "It is not wrong. CORRECT, I would say.",
        "I see no difference\n\nCORRECT",
        "`CORRECT`",
    ],
)
def test_a_clear_verdict_is_read(answer: str) -> None:
    assert read_verdict(answer).verdict is Verdict.CORRECT


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("CORRECT\nINCORRECT", "says both CORRECT and INCORRECT"),
        ("It is CORRECT or INCORRECT.", "says both CORRECT and INCORRECT"),
        ("It is CORRECT but I am UNSURE.", "says both CORRECT and UNSURE"),
        ("NOT CORRECT", "denies or asks whether it is CORRECT"),
        ("It is not CORRECT.", "denies or asks"),
        ("This isn\u2019t quite CORRECT", "denies or asks"),
        ("That can't be **INCORRECT**.", "denies or asks whether it is INCORRECT"),
        ("Is it CORRECT? No.", "denies or asks"),
        ("", "says none of CORRECT, INCORRECT, UNSURE"),
        ("It is correct.", "says none of"),
        ("CORRECTLY done", "says none of"),
        ("I can't help with that.", "says none of"),
    ],
)
def test_an_unclear_verdict_is_a_failure(answer: str, reason: str) -> None:
    judgement = read_verdict(answer)

    assert judgement.failed
    assert judgement.explanation.startswith(f"the judge {reason}")


@given(st.text(), st.sampled_from(["CORRECT", "INCORRECT", "UNSURE"]))
def test_a_line_of_its_own_decides_whatever_stands_around_it(around: str, word: str) -> None:
    lines = [
        line for line in around.splitlines() if line.strip().upper() not in {"CORRECT", "INCORRECT", "UNSURE"}
    ]

    judgement = read_verdict("\n".join([*lines, word]))

    expected = {"CORRECT": Verdict.CORRECT, "INCORRECT": Verdict.INCORRECT, "UNSURE": Verdict.CENSORED}
    assert judgement.verdict is expected[word]


def test_a_long_answer_is_read_fast_and_shown_in_part() -> None:
    assert read_verdict("not " * 250_000).failed
    assert read_verdict("not CORRECT " * 100_000).failed
    judgement = read_verdict("*" * 1_000_000 + "\nCORRECT\n" + " \t" * 500_000)

    assert judgement.verdict is Verdict.CORRECT
    assert len(judgement.explanation) < 400


# --- the key ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("JUDGE_KEY", f" {KEY}\n")
    return "JUDGE_KEY"


def test_the_key_is_sent_from_the_environment(serve: Serve, judge: Judge, key: str) -> None:
    server = serve(says("CORRECT"))
    judge(server, key_env=key).judge(PROBLEM, "18")

    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


def test_without_a_variable_no_key_is_sent(serve: Serve, judge: Judge) -> None:
    server = serve(says("CORRECT"))
    judge(server).judge(PROBLEM, "18")

    assert "authorization" not in server.headers[0]


@pytest.mark.parametrize(
    "answer",
    [
        status(401, f"the key {KEY} is wrong"),
        status(500, "x" * 190 + KEY),
        says(f"{KEY} CORRECT"),
        says(KEY),
        raw(KEY.encode()),
        hangs_up,
    ],
)
def test_the_key_is_in_no_judgement_and_no_log(
    serve: Serve, judge: Judge, key: str, answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        oracle = judge(serve(answer), key_env=key)
        judgements = judge_all(oracle, [(PROBLEM, "18", False)])

    seen = caplog.text + repr(judgements) + repr(oracle.options) + repr(vars(oracle))
    assert "sk-very" not in seen


def test_a_run_keeps_everything_but_the_key(key: str) -> None:
    with closing(make_oracle("judge", {"url": "http://h/v1", "model": "m", "key_env": key})) as oracle:
        settings = oracle_settings(oracle)
    with closing(oracle_of_settings(settings)) as again:
        assert oracle_settings(again) == settings

    assert KEY not in json.dumps(settings)
    assert settings["oracle.key_env"] == key
    assert settings["oracle.template"] == TEMPLATE


@pytest.mark.parametrize(
    ("value", "reason"), [(None, "is not set"), (" ", "is not set"), ("k\u00e9y", "holds characters")]
)
def test_a_variable_without_a_key_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch, value: str | None, reason: str
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)

    with pytest.raises(OracleError, match=f"the environment variable JUDGE_KEY.* {reason}") as error:
        JudgeOracle("http://h", "m", key_env="JUDGE_KEY")
    assert "k\u00e9y" not in str(error.value)


# --- options ----------------------------------------------------------------------------------------------------------


def test_all_that_is_wrong_with_the_options_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "prompt").write_text("$answer $completion", encoding="utf-8")
    assignments = [
        "url=ftp://h",
        "key_env=a-b",
        f"template_file={tmp_path / 'prompt'}",
        "retries=-1",
        "key=x",
    ]

    with pytest.raises(OracleError) as error:
        make_oracle("judge", assignments=assignments)

    lines = str(error.value).splitlines()
    assert len(lines) == 7
    for part in (
        "'url' is 'ftp://h': expected http",
        "$answer; expected $question",
        "'model' is missing",
        "no option 'key'",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "url",
    ["http://user:pass@h", "http://h/v1?key=1", "http://h#x", "h:80", "http://", "http://[", "http://a b"],
)
def test_a_url_with_a_secret_or_without_a_host_is_refused(url: str) -> None:
    with pytest.raises(OracleError, match="option 'url' is "):
        make_oracle("judge", {"url": url, "model": "m"})


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("no place for it", r"does not have \$completion"),
        ("$completion costs $5", r"a \$ in it begins no name"),
    ],
)
def test_a_template_that_can_not_be_filled_is_refused(template: str, reason: str) -> None:
    with pytest.raises(OracleError, match=reason):
        make_oracle("judge", {"url": "http://h", "model": "m", "template": template})


def test_two_templates_are_refused(tmp_path: Path) -> None:
    (tmp_path / "prompt").write_text("$completion", encoding="utf-8")

    with pytest.raises(OracleError, match="template and template_file are both given"):
        JudgeOracle("http://h", "m", template="$completion", template_file=tmp_path / "prompt")


def test_closing_twice_is_allowed(serve: Serve, judge: Judge) -> None:
    oracle = judge(serve(says("CORRECT")))
    oracle.judge(PROBLEM, "18")
    oracle.close()
    oracle.close()
