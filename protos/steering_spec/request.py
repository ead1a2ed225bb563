"""What a request asks for: a prompt, how to sample, how to steer. Plain values; `admission` judges them."""

from __future__ import annotations

from dataclasses import dataclass

from steering_spec.steering import SteeringSpec


@dataclass(frozen=True, slots=True)
class PromptText:
    """Plain text, tokenized as it stands."""

    text: str


@dataclass(frozen=True, slots=True)
class PromptIds:
    """Token ids, used exactly as given."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One chat message; role is `system`, `user`, `assistant` or `tool`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages for the model's chat template; `final_message_open` continues the last one."""

    messages: tuple[ChatMessage, ...]
    final_message_open: bool = False


Prompt = PromptText | PromptIds | Chat


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen.

    The order is: logits, `logit_bias`, `repetition_penalty`, presence and frequency penalties, what may not be drawn
    (`min_tokens`), temperature, top-k, top-p, min-p, `banned_first_ids`.

    Attributes:
        temperature: 0 means greedy.
        top_p: Nucleus in (0, 1]; 1 is off.
        top_k: Keep the k most likely tokens; None keeps all.
        max_tokens: Most tokens to generate; None means the server's default.
        seed: Makes sampling repeatable; None means a fresh one. Completion i of several draws with seed + i.
        stop: Generation ends before the first of these texts.
        min_p: Keep tokens at least this share as likely as the most likely one, in [0, 1]; 0 is off. Applied after
            temperature, top-k and top-p.
        banned_first_ids: Ids that the first generated token can't be; the probabilities of the others are renormalised.
            Where top-k, top-p and min-p leave nothing else, they give way.
        n: Completions of the same prompt, which is computed once for all of them.
        min_tokens: Before so many tokens no end-of-sequence token is drawn and no stop sequence is looked for.
        repetition_penalty: Positive logits of tokens in prompt or completion are divided by it, negative ones
            multiplied (Keskar et al. 2019, arXiv:1909.05858); 1 is off.
        presence_penalty: Taken off the logits of tokens that the completion holds already; 0 is off.
        frequency_penalty: The same, times how often the completion holds them; 0 is off.
        logit_bias: Pairs of id and what is added to its logit.
        top_logprobs: Most likely alternatives that are told with each token; 0 tells none.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    min_p: float = 0.0
    banned_first_ids: tuple[int, ...] = ()
    n: int = 1
    min_tokens: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    top_logprobs: int = 0


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """Completions to make.

    Attributes:
        prompt: Exactly one prompt form.
        sampling: How tokens are chosen.
        steering: How the residual stream is changed; None means not at all.
        model: `models/{model}`, or empty for the served one.
        request_id: Id for logs; empty lets the server choose.
        steering_trace: Report each steering act.
    """

    prompt: Prompt
    sampling: SamplingParams = SamplingParams()
    steering: SteeringSpec | None = None
    model: str = ""
    request_id: str = ""
    steering_trace: bool = False
