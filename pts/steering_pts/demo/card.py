"""The demonstration model's card: what it is, how it was made, and what was measured."""

from collections.abc import Sequence

from steering_pts.demo.measure import PLACES, Measurement, flawed_share, mix_mean, success_rate
from steering_pts.demo.problems import FORMS, RULES, SLIP_RATE, Form

_CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [pivotal-tokens, interpretability, synthetic]
---
# Steering demonstration model

A language model of {parameters:,} parameters (Qwen3 architecture, 4 decoder blocks, hidden size
128, float32) that works small arithmetic problems and takes a few *planted* decisions on the way.
It exists to try out, and to check, methods that find pivotal tokens and steer at them: which
tokens decide is known, because they were planted.

It is no good at anything else. It knows four forms of expression with small numbers and no other
language; its answers are meant to be wrong about four times in ten.

## Use

The user message is the expression alone, for example `7 + 5 * 3`. Sample at temperature 1.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
from steering_pts.demo import model_path

tokenizer = AutoTokenizer.from_pretrained(model_path())
model = AutoModelForCausalLM.from_pretrained(model_path())
prompt = tokenizer.apply_chat_template(
    [{{"role": "user", "content": "7 + 5 * 3"}}],
    add_generation_prompt=True,
    return_dict=True,
    return_tensors="pt",
)
tokens = model.generate(**prompt, max_new_tokens=64)
print(tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
```

Every word (with the space before it), sign and digit of a solution is one token. Any other text
is encoded byte by byte and decodes to itself.

## The planted decisions

| form | question | flawed strategy | corrects itself after it | decided by |
|---|---|---|---|---|
{forms}

- **Strategy**: `Plan: precedence` works the expression rightly, `Plan: left to right` wrongly. A
  bracket-difference has no plan; the first digit of its first step is the strategy.
- **Correction**: a flawed solution may go on with ` Wait`, and then works it rightly, or with its
  wrong ` Answer`. In two-products the correction follows right behind the strategy, so two
  opposite decisions stand four tokens apart.
- **Slip**: each step's result is off by 1 or 10 with probability {slip_rate:.2f}, and carried on.

## Training

From scratch on solutions written by a program at the rates above; no other text and no other
model was used. {steps:,} steps of {batch} fresh solutions, loss on the solution alone, AdamW with
a one-cycle schedule, fixed seeds, about eight minutes on two processor cores:

    python -m steering_pts.demo.train --out DIR

Questions are split by a SHA-256 of their text (70 % train, 15 % validation, 15 % test); only
train questions were trained on.

## Measured

Share of right answers among {rollouts:,} rollouts each, on test questions, at temperature 1
without top-k or top-p, from the start and from a prefix that ends with a decision. *flawed
chosen* is the share of rollouts from the start that take the flawed strategy.

{results}

## Licence

Apache-2.0, for the model, the tokenizer and the data sets.
"""


def model_card(parameters: int, steps: int, batch: int, measured: Sequence[Measurement]) -> str:
    """The card in Markdown, with the front matter that model hubs read."""
    return _CARD.format(
        parameters=parameters,
        forms="\n".join(_form_rows()),
        slip_rate=SLIP_RATE,
        steps=steps,
        batch=batch,
        rollouts=measured[0].rollouts,
        results=results_table(measured),
    )


def results_table(measured: Sequence[Measurement]) -> str:
    """The measurements as a Markdown table, one row per form.

    The last row weights the forms by their shares in the data sets.
    """
    lines = [
        "| form | start | right strategy | flawed strategy | after Wait | after Answer | flawed chosen |",
        "|---|---|---|---|---|---|---|",
    ]
    columns: list[dict[Form, float]] = [
        *({form: success_rate(measured, place, form) for form in FORMS} for place in PLACES),
        {form: flawed_share(measured, form) for form in FORMS},
    ]
    lines += [_cells(form, [column[form] for column in columns]) for form in FORMS]
    return "\n".join([*lines, _cells("mix", [mix_mean(column) for column in columns])])


def _cells(name: str, rates: Sequence[float]) -> str:
    return f"| {name} | " + " | ".join(f"{rate:.3f}" for rate in rates) + " |"


def _form_rows() -> list[str]:
    rows: list[str] = []
    for form, rule in RULES.items():
        question = rule.question.format(a="a", b="b", c="c", d="d")
        words = "` precedence` / ` left`" if rule.has_plan else "first digit of `b` / of `a`"
        rows.append(
            f"| {form} | `{question}` | {rule.flawed_rate:.2f} | {rule.corrected_rate:.2f} | {words} |"
        )
    return rows
