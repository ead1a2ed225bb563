"""The demonstration model's tokenizer: byte-level BPE in which words and digits stay whole.

Every word of a solution, with the space before it, is one token, and so is every digit. A planted
decision then sits on exactly one token: `` left`` or `` precedence``, `` Wait`` or `` Answer``.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from steering_pts.demo.problems import draw_problem, write_solution

PAD: Final = "<|pad|>"
USER: Final = "<|user|>"
ASSISTANT: Final = "<|assistant|>"
SYSTEM: Final = "<|system|>"
END: Final = "<|end|>"
SPECIAL_TOKENS: Final = (PAD, USER, ASSISTANT, SYSTEM, END)
MAX_LENGTH: Final = 512

# A space joins what follows it. Digits and signs split off one by one, so that no two ever merge.
_PIECES: Final = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s"
_CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' ~ message['role'] ~ '; use system, user or assistant') }}"
    "{% endif %}"
    "{{ '<|' ~ message['role'] ~ '|>' ~ message['content'] ~ '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# BPE stops at about 310 tokens, when each word of the corpus is whole; this bound is never met.
_VOCABULARY_BOUND: Final = 384
_CORPUS_SIZE: Final = 5000


def prompt_text(question: str) -> str:
    """The prompt of a question, as the chat template renders it with a generation prompt."""
    return f"{USER}{question}{END}{ASSISTANT}"


def build_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer on solutions of training problems drawn with ``seed``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY_BOUND,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        padding_side="left",
        model_max_length=MAX_LENGTH,
        # Without this, transformers 4 adds token_type_ids, which the model does not take.
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        chat_template=_CHAT_TEMPLATE,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save the tokenizer so that transformers 4 and 5 both load it, special tokens included."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # transformers 5 writes a class name and omits special tokens that transformers 4 needs.
    config.pop("backend", None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["additional_special_tokens"] = [USER, ASSISTANT, SYSTEM]
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _corpus(seed: int) -> Iterable[str]:
    rng = Random(seed)
    for _ in range(_CORPUS_SIZE):
        problem = draw_problem("train", rng)
        yield problem.question
        yield write_solution(problem, rng)
