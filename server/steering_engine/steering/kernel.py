"""All steering of one block in one CUDA kernel, written in Triton: one program for each row of the forward.

A captured graph replays the same kernels on the same addresses, so whatever differs between forwards is data: which
rows have entries, and what they say. A row without any ends at once. The arithmetic is that of `ops.steer`; sums over
a row are added up in another order than torch's.
"""

# Triton reads the kernel's own source; its parameters are device pointers and have no types that mypy would know.
# mypy: ignore-errors
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def steer_rows(
    hidden,
    hidden_stride,
    table,
    width,
    question_starts,
    question_slot_starts,
    question_slots,
    question_numbers,
    values,
    gates,
    entry_starts,
    entry_numbers,
    effects,
    FIRST_QUESTION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Reads and steers one row of one block in place.

    Args:
        hidden: `[rows, width]` residual stream, any floating dtype.
        hidden_stride: Elements from one row to the next.
        table: `[capacity, width]` resident rows of the block, float32.
        width: Width of the residual stream.
        question_starts: `[rows + 1]` where each row's questions begin.
        question_slot_starts: `[questions + 1]` where each question's slots begin.
        question_slots: Slots of all questions.
        question_numbers: `[questions, 3]` float32: threshold, bias, and 1 where the row is made a unit vector first.
        values: `[questions]` float32, written: what was read.
        gates: `[1 + questions]` int32, written: which gates are open.
        entry_starts: `[rows + 1]` where each row's entries begin.
        entry_numbers: `[entries, 3]` int32: slot, gate, exclusive.
        effects: `[entries, 5]` float32: `Effect`.
        FIRST_QUESTION: The gate of question 0.
        BLOCK: Power of two, at least `width`.
    """
    row = tl.program_id(0)
    question = tl.load(question_starts + row)
    last_question = tl.load(question_starts + row + 1)
    entry = tl.load(entry_starts + row)
    last_entry = tl.load(entry_starts + row + 1)
    if (question == last_question) & (entry == last_entry):
        return
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    place = hidden + row.to(tl.int64) * hidden_stride + columns
    h = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    if question < last_question:
        norm = tl.maximum(tl.sqrt(tl.sum(h * h)), 1.1754943508222875e-38)
        while question < last_question:
            slot = tl.load(question_slot_starts + question)
            last_slot = tl.load(question_slot_starts + question + 1)
            value = float("-inf")
            while slot < last_slot:
                number = tl.load(question_slots + slot).to(tl.int64)
                weight = tl.load(table + number * width + columns, mask=inside, other=0.0)
                value = tl.maximum(value, tl.sum(h * weight))
                slot += 1
            numbers = question_numbers + question * 3
            value = tl.where(tl.load(numbers + 2) > 0, value / norm, value) + tl.load(numbers + 1)
            tl.store(values + question, value)
            tl.store(gates + FIRST_QUESTION + question, (value >= tl.load(numbers)).to(tl.int32))
            question += 1
        tl.debug_barrier()  # the gates are read again below, by other threads of this program
    taken = entry * 0
    while entry < last_entry:
        slot = tl.load(entry_numbers + entry * 3).to(tl.int64)
        opened = tl.load(gates + tl.load(entry_numbers + entry * 3 + 1))
        exclusive = tl.load(entry_numbers + entry * 3 + 2)
        acts = (opened != 0) & ((exclusive == 0) | (taken == 0))
        direction = tl.load(table + slot * width + columns, mask=inside, other=0.0)
        effect = effects + entry * 5
        found = tl.sum(h * direction)
        bounded = tl.minimum(tl.maximum(found, tl.load(effect + 2)), tl.load(effect + 3))
        amount = tl.load(effect) + tl.load(effect + 1) * (bounded - found)
        moved = h + amount * direction
        before = tl.sqrt(tl.sum(h * h))
        after = tl.maximum(tl.sqrt(tl.sum(moved * moved)), 1.1754943508222875e-38)
        moved = tl.where(tl.load(effect + 4) > 0, moved * (before / after), moved)
        # Each rule's result is rounded to the residual stream's dtype, as it is without a graph.
        h = tl.where(acts, moved.to(hidden.dtype.element_ty).to(tl.float32), h)
        taken = tl.where(acts, 1, taken)
        entry += 1
    tl.store(place, h.to(hidden.dtype.element_ty), mask=inside)
