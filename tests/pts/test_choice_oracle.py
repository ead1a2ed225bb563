from __future__ import annotations

import json
from typing import Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from steering_pts.data import Problem
from steering_pts.errors import OracleError
from steering_pts.oracles import Judgement, Verdict, choose_oracle, make_oracle
from steering_pts.oracles.choice import ChoiceOracle
from steering_pts.oracles.choice_reading import ChoiceWords, read_choice
from steering_pts.oracles.choices import choices_of, gold_choice, offered_choices
from tests.support.texts import check_watcher, cut_points

CITIES = ["London", "Paris", "New York", "Rome"]
CAPITAL = Problem("p", "What is the capital of France?", "B", {"choices": json.dumps(CITIES)})
YES_NO = Problem("p", "Is it?", "yes")


def problem(answer: str, choices: object = None, question: str = "Which?") -> Problem:
    return Problem("p", question, answer, {} if choices is None else {"choices": json.dumps(choices)})


def read(text: str, about: Problem = CAPITAL, which: Literal["last", "first"] = "last") -> str:
    return ",".join(sorted(read_choice(text, ChoiceWords(choices_of(about)), which)))


# --- what is offered --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "labels"),
    [
        ({"text": ["red", "blue"], "label": ["A", "B"]}, "A B"),
        ({"text": ["red", "blue", "green"], "label": ["1", "2", "3"]}, "1 2 3"),
        (["red", "blue", "green"], "A B C"),
        ([7, 8.5], "A B"),
        ([{"label": "A", "text": "red"}, {"label": "B", "text": "blue"}], "A B"),
        ({"A": "red", "B": "blue"}, "A B"),
    ],
)
def test_choices_are_found_in_the_fields_of_a_problem(choices: object, labels: str) -> None:
    assert [choice.label for choice in choices_of(problem(labels[0], choices))] == labels.split()


@pytest.mark.parametrize(
    "question",
    [
        "Which?\nA) red\nB) blue",
        "Which?\n(A) red\n(B) blue\n",
        "Which?\n\nA. red\n\nB. blue\nAnswer:",
        "Example?\nA) one\nB) two\nC) three\n\nWhich?\nA) red\nB) blue",
    ],
)
def test_choices_are_found_in_the_last_lettered_lines_of_the_question(question: str) -> None:
    choices = choices_of(problem("B", question=question))

    assert [(choice.label, choice.names) for choice in choices] == [("A", ("red",)), ("B", ("blue",))]


@pytest.mark.parametrize("answer", ["yes", "No", "TRUE", "false"])
def test_yes_and_no_need_no_choices(answer: str) -> None:
    assert [choice.label for choice in choices_of(problem(answer))] == ["yes", "no"]


def test_a_letter_alone_offers_letters() -> None:
    assert "".join(choice.label for choice in choices_of(problem("(D)"))) == "ABCDEFGHIJ"


@pytest.mark.parametrize(
    "field", ["not json", "3", "[]", '["one"]', '{"text": ["a"], "label": []}', "[null, 1]"]
)
def test_a_field_that_offers_nothing_is_passed_over(field: str) -> None:
    assert offered_choices(Problem("p", "Which?", "x", {"choices": field})) is None


def test_a_problem_without_choices_is_a_misfit() -> None:
    reason = ChoiceOracle().misfit(problem("Paris"))

    assert reason is not None
    assert reason.startswith("no choices: it has none of the fields choices, options,")
    with pytest.raises(OracleError, match="no choices"):
        ChoiceOracle().judge(problem("Paris"), "Paris")


# --- what is right ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gold", ["B", "b", "(B)", "B.", "B) Paris", "1", "Paris", "paris."])
def test_the_right_choice_is_given_by_label_index_or_text(gold: str) -> None:
    about = problem(gold, CITIES)

    assert gold_choice(about, choices_of(about)).label == "B"


def test_a_label_goes_before_an_index() -> None:
    about = problem("2", {"text": ["red", "blue", "green"], "label": ["1", "2", "3"]})

    assert gold_choice(about, choices_of(about)).label == "2"


def test_a_number_that_may_be_index_or_text_is_refused_until_it_is_said_which() -> None:
    about = problem("2", ["4", "2", "1"])

    assert ChoiceOracle().misfit(about) == (
        "its answer '2' is the index of C and the text of B; say which is meant with the option gold=index or gold=text"
    )
    assert ChoiceOracle(gold="index").judge(about, "C").verdict is Verdict.CORRECT
    assert ChoiceOracle(gold="text").judge(about, "B").verdict is Verdict.CORRECT


@pytest.mark.parametrize("gold", ["E", "4", "Madrid", "B) London"])
def test_an_answer_that_is_none_of_the_choices_is_a_misfit(gold: str) -> None:
    reason = ChoiceOracle().misfit(problem(gold, CITIES))

    assert (
        reason
        == f"its answer {gold!r} is the label, index or text of none of its choices A, B, C, D, or of several"
    )


def test_a_text_that_two_choices_share_names_neither() -> None:
    assert ChoiceOracle().misfit(problem("red", ["red", "red"])) is not None


# --- what a completion chooses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "completion",
    [
        "B",
        "(B)",
        "b",
        "B.",
        "B)",
        "**B**",
        "B) Paris",
        "(B) Paris.",
        "Paris",
        "paris.",
        "$B$",
        "Answer: B",
        "Answer: (b)",
        "**Answer:** B",
        "Answer:\nB",
        "Answer:\n\n(B) Paris\n",
        "Answer: Paris",
        "The answer is (B).",
        "The answer is B because Paris is in France.",
        "The answer is most likely Paris.",
        "The answer is option B.",
        "The final answer is: **(B) Paris**.",
        "The correct option is B.",
        "Option B is correct.",
        "Option A is wrong, (C) can't be, so it is (B).",
        "B is the correct answer.",
        "Paris is right, since it is.",
        "The right choice would be B.",
        "My final choice: B",
        "<answer>B</answer>",
        "<answer>\nB\n</answer>",
        r"So \boxed{B}.",
        r"\boxed{\text{B}}",
        r"\boxed{\text{(B) Paris}}",
        "#### B",
        "I would choose B.",
        "The answer is Paris, not London.",
        "The answer is not (A) but (B).",
        "The answer is therefore, by elimination, B",
        "So B is correct.",
        "I believe that Paris is correct.",
        "Among A, B, C and D, B is right.",
        "I think it's B",
        "It must be Paris.",
        "It's B, because the president lives there.",
        "The answer isn't A, it's B.",
        "It's not A, it's B.",
        "So, answer B.",
        "Therefore (B).",
        "B - Paris",
        "**B** \u2013 Paris",
        "B. Paris is where the president lives.",
        "(B) is the one.",
        "Paris, as everybody knows.",
        "London is in England. So it must be (B).",
        "Let us see.\nA) London is in England.\nC) New York is not in Europe.\nSo the answer is B.",
        "Answer: A\nNo, wait.\nAnswer: B",
        "A\n\nThat was too quick.\nB",
        "The answer is A. Wait, no: the answer is not clear.\nB? Answer: B",
    ],
)
def test_a_choice_is_read_in_every_usual_form(completion: str) -> None:
    assert read(completion) == "B"


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "I do not know.",
        "A nice question about a town.",
        "The answer is not clear.",
        "The answer is not A.",
        "Option B is not correct.",
        "The answer is a town in France.",
        "A) London\nB) Paris\nC) New York\nD) Rome",
        "London\nParis",
        "A. is in England.\nB. is in France.",
        "#### Step 1: think about option B\nThat is all.",
        "Answer:",
        "I like them all.",
        "Neither A nor B is correct.",
        "I doubt that B is correct.",
        "I don't think it's B.",
        "If it is B, I am glad.",
        "Is it B? Or is it not B?",
        "It is A, B or C.",
        "It is a town.",
        "The answer isn't B.",
        "The answer isn't clear.",
        "Consider answer B.",
        "A - Paris",
        "A - London\nB - Paris",
    ],
)
def test_a_completion_may_make_no_choice(completion: str) -> None:
    assert read(completion) == ""
    assert ChoiceOracle().judge(CAPITAL, completion) == Judgement(
        Verdict.INCORRECT, None, "the completion makes no choice"
    )


@pytest.mark.parametrize(
    ("completion", "choices"),
    [
        ("Answer: A or B", "A,B"),
        ("Answer: A, B", "A,B"),
        ("The answer is (A) and (C).", "A,C"),
        (r"\boxed{A, B}", "A,B"),
        ("The answer is A, so \\boxed{B}", "A,B"),
        ("Answer: London or Paris", "A,B"),
        ("It is (A) or (B).", "A,B"),
        ("Option A looks good, but it's B.", "A,B"),
    ],
)
def test_two_choices_in_one_place_are_no_decision(completion: str, choices: str) -> None:
    assert read(completion) == choices
    assert ChoiceOracle().judge(CAPITAL, completion).verdict is Verdict.INCORRECT


def test_what_is_marked_goes_before_what_stands_alone() -> None:
    assert read("Answer: B\n\nA") == "B"
    assert read("A\nThe answer is B") == "B"
    assert read("So A.\n\nWait.\nB") == "B"


def test_the_first_answer_counts_where_that_is_asked_for() -> None:
    text = "Answer: B\n\nQuestion: What is the capital of Italy?\nAnswer: D"

    assert (read(text), read(text, which="first")) == ("D", "B")


@pytest.mark.parametrize(
    ("completion", "choice"),
    [
        ("Yes", "yes"),
        ("no.", "no"),
        ("True", "yes"),
        ("Yes, because it is so.", "yes"),
        ("Yes - it is.", "yes"),
        ("No. It never was.", "no"),
        ("The answer is no.", "no"),
        ("Answer: False", "no"),
        ("The answer is yes, since it is so.", "yes"),
        (r"\boxed{\text{No}}", "no"),
        ("There is no doubt.\nAnswer: yes", "yes"),
        ("Yes it is.", "yes"),
        ("No it was not", "no"),
        ("No it was not clear to me", ""),
        ("It is true.", "yes"),
        ("It is true. But I do not know.", ""),
        ("It is true that I know.", ""),
        ("It isn't true.", ""),
        ("No doubt about it.", ""),
        ("There is no way to tell.", ""),
        ("The answer is no longer known.", ""),
        ("Answer: yes or no", "no,yes"),
        ("Yes, it is.\nNo, it is not.", ""),
    ],
)
def test_yes_and_no_are_read_where_they_answer(completion: str, choice: str) -> None:
    assert read(completion, YES_NO) == choice


def test_choices_named_yes_and_no_are_called_true_and_false_too() -> None:
    assert read("True.", problem("A", ["yes", "no"])) == "A"


@pytest.mark.parametrize(
    ("completion", "choice"),
    [("Answer: 2", "2"), ("(3)", "3"), ("2) blue", "2"), ("blue", "2"), ("There are 2 of 3.", "")],
)
def test_labels_may_be_numbers(completion: str, choice: str) -> None:
    numbered = problem("2", {"text": ["red", "blue", "green"], "label": ["1", "2", "3"]})

    assert read(completion, numbered) == choice


def test_a_text_that_begins_like_a_label_is_not_one() -> None:
    animals = problem("C", ["a cat", "A B C", "A dog", "vitamin C"])

    assert read("Answer: A dog", animals) == "C"
    assert read("The answer is a cat.", animals) == "A"
    assert read("The answer is vitamin C.", animals) == "D"


def test_numbers_as_texts_are_compared_whole() -> None:
    assert read("The answer is 0.25.", problem("A", ["0.5", "0.25", "0.2"])) == "B"


LETTERS = st.sampled_from("ABCD")
FORMS = [
    "{label}",
    "({label})",
    "{label}.",
    "{label}) {text}",
    "{text}",
    "Answer: {label}",
    "Answer: {text}",
    "The answer is ({label}).",
    "The answer is {label}, of course.",
    r"\boxed{{{label}}}",
    r"Hence $\boxed{{\text{{{text}}}}}$.",
    "#### {label}",
    "The correct choice is {label}: {text}.",
    "Final answer:\n{label}",
]
REASONING = ["", "Let us think.\n", "It can't be option A, nor (C).\n", "A town has a mayor.\nI like it.\n"]


@given(LETTERS, LETTERS, st.sampled_from(FORMS), st.sampled_from(REASONING))
def test_a_completion_is_correct_when_it_makes_the_right_choice(
    gold: str, made: str, form: str, reasoning: str
) -> None:
    completion = reasoning + form.format(label=made, text=CITIES["ABCD".index(made)])
    judged = ChoiceOracle().judge(problem(gold, CITIES), completion)

    assert judged.extracted == made
    assert judged.verdict is (Verdict.CORRECT if gold == made else Verdict.INCORRECT)


@given(st.text(max_size=200))
@example("answer is " * 5000)
@example("(A)" * 10000)
@example("is correct " * 5000)
@example(r"\boxed{" * 5000)
@example(" or , and " * 5000)
@example("A, " * 5000)
@example("#" * 5000)
@example("not " * 5000 + "(A)")
@example("it's B " * 5000 + ":")
@example("so among , " * 5000 + "B is correct")
@example("isn't " * 5000)
def test_any_text_can_be_read(text: str) -> None:
    assert set(read(text)) <= set("ABCD,")


PIECES = [
    "Answer: ",
    "A",
    "(B)",
    "C) New York",
    "Paris",
    "\n",
    "\n\n",
    " or ",
    "#### ",
    r"\boxed{D}",
    "Answer:",
]
PIECES += ["The answer is ", "not ", ". ", "Option B is correct", "Yes", "x", " because", "Question: which?"]
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join)


@given(st.sampled_from("ABCD"), texts, texts, cut_points)
def test_nothing_changes_a_verdict_once_it_is_closed(
    gold: str, text: str, continuation: str, points: list[int]
) -> None:
    check_watcher(ChoiceOracle(which="first"), problem(gold, CITIES), text, continuation, points)


def test_the_first_marked_answer_closes_when_its_line_has_ended() -> None:
    watcher = ChoiceOracle(which="first").watcher(CAPITAL)

    assert watcher is not None
    assert [watcher(piece) for piece in ["A\nAnswer", ": B", " or C", "\n", "x"]] == [
        False,
        False,
        False,
        True,
        True,
    ]


def test_where_the_last_answer_counts_nothing_is_closed() -> None:
    assert ChoiceOracle().watcher(CAPITAL) is None


# --- the choice of this oracle ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "problems",
    [
        [CAPITAL, problem("A", ["red", "blue"])],
        [problem("0", ["red", "blue"]), problem("1", ["red", "blue"])],
        [problem("B", question="Which?\nA) red\nB) blue")],
        [YES_NO, problem("false")],
        [problem("A"), problem("D")],
    ],
)
def test_it_is_chosen_where_every_problem_offers_choices(problems: list[Problem]) -> None:
    assert choose_oracle(problems).name == "choice"


def test_it_is_not_chosen_where_an_answer_is_none_of_the_choices() -> None:
    assert choose_oracle([CAPITAL, problem("18", ["red", "blue"])]).name == "exact"


def test_its_options_make_it_again() -> None:
    options = {"which": "first", "gold": "index"}

    assert make_oracle("choice", options).options == options
