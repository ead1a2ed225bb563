"""How a problem's question is put to a model."""

from __future__ import annotations

from collections.abc import Sequence

from steering_engine.model import SteeredModel
from steering_pts.data import Problem
from steering_pts.errors import SearchError
from steering_spec import Chat, ChatMessage, PromptText


def question_prompt(problem: Problem, *, raw: bool) -> PromptText | Chat:
    """The question as it is, or as a user's message for the model's chat template."""
    return PromptText(problem.question) if raw else Chat((ChatMessage("user", problem.question),))


def encode_prompts(
    model: SteeredModel, problems: Sequence[Problem], *, raw: bool
) -> dict[str, tuple[int, ...]]:
    """The prompt ids of every problem; `raw` gives questions as they are, not as messages for the chat template.

    Raises:
        SearchError: The model has no chat template, or prompts leave no room for a token; before any work is done.
        InvalidRequestError: The chat template refuses a question.
    """
    if not raw and not model.info.facts.chat_supported:
        raise SearchError(
            f"{model.loaded.source} has no chat template; pass --raw to give it the questions as they are"
        )
    prompts = {problem.id: model.prompt_ids(question_prompt(problem, raw=raw)) for problem in problems}
    room = model.info.facts.max_context_tokens
    if long := [problem for problem in problems if len(prompts[problem.id]) >= room]:
        raise SearchError(
            f"{len(long)} of {len(problems)} prompts leave no room for an answer in the model's context of {room} "
            f"tokens, the first that of problem {long[0].id} ({len(prompts[long[0].id])} tokens, "
            f"{long[0].question!r:.60})"
        )
    return prompts
