"""From the text of other programs to token ids, as far as that can be checked.

Text does not say which tokens it was made of. What can be said: the model's tokenizer turns it into ids that decode to
the very same text, and the token after it keeps those ids as they are. Where either fails, nothing is recovered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from steering_pts.interop.codelion.reading import Decision, TokenText
from steering_pts.interop.mending import Mending


@dataclass(frozen=True, slots=True)
class RecoveredDecision:
    """A decision as ids.

    Attributes:
        decision: What the file says.
        context_ids: Prompt and completion before the decision.
        taken_ids: The token that was taken (or the sentence, of an export of ours).
        other_ids: What stands in its place; empty where the file has nothing.
        prompt_tokens: How many of the context's ids are the prompt; None where only the question can tell.
    """

    decision: Decision
    context_ids: tuple[int, ...]
    taken_ids: tuple[int, ...]
    other_ids: tuple[int, ...]
    prompt_tokens: int | None


class Recovery:
    """Finds the ids of texts with a model's fast tokenizer."""

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        """Takes the tokenizer, and how many ids the model has an embedding for."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size

    def text_ids(self, text: str) -> tuple[int, ...] | None:
        """The ids of a text that decode to it again, special tokens included; None where there are none."""
        ids = tuple(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        return ids if ids and self._is_known(ids) and self._decode(ids) == text else None

    def next_id(self, context: str, context_ids: tuple[int, ...], token: TokenText) -> int | None:
        """The one id that stands for a token after a context; None where there is none.

        An id that the file gives is taken where it says the token's text. Else it is the one that the tokenizer puts
        behind the context, and where the tokenizer would join them, the token that has the text alone.
        """
        whole = context + token.text
        continued = tuple(self._tokenizer(whole, add_special_tokens=False, verbose=False)["input_ids"])
        alone = tuple(self._tokenizer(token.text, add_special_tokens=False, verbose=False)["input_ids"])
        candidates = [token.id] if token.id is not None else []
        if continued[: len(context_ids)] == context_ids and len(continued) == len(context_ids) + 1:
            candidates.append(continued[-1])
        if len(alone) == 1:
            candidates.append(alone[0])
        return next(
            (
                one
                for one in candidates
                if self._is_known((one,)) and self._decode((*context_ids, one)) == whole
            ),
            None,
        )

    def decision(self, decision: Decision, mending: Mending) -> RecoveredDecision | str:
        """A decision as ids, or why it can't be had."""
        if (own := self._own(decision)) is not None:
            return own
        context_ids = self.text_ids(decision.context)
        if context_ids is None:
            return "its context is not what this model's tokenizer makes of it and back"
        ids: list[tuple[int, ...]] = []
        for token in (decision.taken, decision.other):
            if token is None:
                ids.append(())
                continue
            found = self.next_id(decision.context, context_ids, token)
            if found is None:
                return f"{token.text!r:.40} is not one token of this model after its context"
            if token.id is not None and token.id != found:
                mending.note(
                    "the token's id did not say its text; the id is that of the text", decision.number
                )
            ids.append((found,))
        if ids[0] == ids[1]:
            return "both of its tokens have the same id"
        return RecoveredDecision(decision, context_ids, ids[0], ids[1], None)

    def _own(self, decision: Decision) -> RecoveredDecision | None:
        """The ids that an export of ours gives, where they say what its text does."""
        own = decision.own
        if (
            own.prompt_ids is None
            or own.prefix_ids is None
            or own.chosen_ids is None
            or own.rejected_ids is None
        ):
            return None
        context_ids = own.prompt_ids + own.prefix_ids
        taken, other = (
            (own.chosen_ids, own.rejected_ids) if decision.delta > 0 else (own.rejected_ids, own.chosen_ids)
        )
        texts = {decision.context: context_ids, decision.taken.text: taken}
        if decision.other is not None:
            texts[decision.other.text] = other
        if any(
            not ids or not self._is_known(ids) or self._decode(ids) != text for text, ids in texts.items()
        ):
            return None
        return RecoveredDecision(decision, context_ids, taken, other, len(own.prompt_ids))

    def _is_known(self, ids: tuple[int, ...]) -> bool:
        return min(ids) >= 0 and max(ids) < self._vocab_size

    def _decode(self, ids: tuple[int, ...]) -> str:
        return str(self._tokenizer.decode(list(ids)))
