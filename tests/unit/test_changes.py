"""The direction table tells what was written lately, and another one can follow it."""

from __future__ import annotations

import torch

from steering_engine.steering.changes import RowChanges
from steering_engine.steering.table import DirectionTable


def test_rows_are_told_once_after_their_last_writing() -> None:
    changes = RowChanges()
    changes.note(0, [1, 2])
    seen = changes.count
    changes.note(1, [1])
    changes.note(0, [2])
    assert changes.since(seen) == {0: [2], 1: [1]}
    assert changes.since(changes.count) == {}
    assert {block: sorted(slots) for block, slots in changes.since(0).items()} == {0: [1, 2], 1: [1]}


def test_a_table_that_follows_another_has_its_rows_at_the_same_slots() -> None:
    device = torch.device("cpu")
    table, follower = DirectionTable(2, 4, device), DirectionTable(2, 4, device)
    known, rows = table.written_since(0)
    assert (known, rows) == (0, {})
    slots = {0: [], 1: []}  # type: dict[int, list[int]]
    for number in range(30):
        block = number % 2
        slots[block].append(table.add(block, torch.full((4,), float(number))))
        if number % 7 == 0:
            known, rows = table.written_since(known)
            follower.follow(rows)
    known, rows = table.written_since(known)
    follower.follow(rows)
    assert table.written_since(known) == (known, {})
    for block, own in slots.items():
        at = torch.tensor(own)
        assert torch.equal(follower.directions(block, at), table.directions(block, at))
