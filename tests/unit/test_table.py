"""The resident table: rows at addresses that never change, handed out all or none, and taken back."""

from __future__ import annotations

import threading

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steering_engine.engine.limits import EngineLimits
from steering_engine.errors import ModelError, VectorTableFullError
from steering_engine.steering.table import DEFAULT_CAPACITY, DirectionTable

CPU = torch.device("cpu")


def numbered(count: int, first: int = 1, width: int = 4) -> torch.Tensor:
    """Rows of which each holds its number."""
    return torch.arange(first, first + count).float()[:, None].expand(count, width)


class TestHandingOut:
    def test_the_first_row_is_zero_and_never_handed_out(self) -> None:
        table = DirectionTable(2, 4, CPU, capacity=3)
        assert table.add_all({0: numbered(2)}) == {0: (1, 2)}
        with pytest.raises(VectorTableFullError):
            table.add(0, torch.ones(4))
        assert torch.equal(table.rows(0), torch.stack([torch.zeros(4), *numbered(2)]))

    def test_slots_hold_the_rows_in_their_order(self) -> None:
        table = DirectionTable(2, 4, CPU)
        slots = [table.add(1, row) for row in numbered(40)]
        assert slots == list(range(1, 41))
        assert torch.equal(table.directions(1, torch.tensor(slots)), numbered(40))
        assert torch.equal(
            table.directions(1, torch.tensor([7, 0, 7])), torch.tensor([7.0, 0, 7]).outer(torch.ones(4))
        )

    def test_blocks_have_rows_of_their_own(self) -> None:
        table = DirectionTable(2, 4, CPU)
        assert table.add_all({0: numbered(1), 1: numbered(1, first=2)}) == {0: (1,), 1: (1,)}
        assert torch.equal(table.directions(0, torch.tensor([1])), torch.full((1, 4), 1.0))
        assert torch.equal(table.directions(1, torch.tensor([1])), torch.full((1, 4), 2.0))

    def test_no_row_ever_moves(self) -> None:
        table = DirectionTable(2, 4, CPU, capacity=9)
        before = [(rows.data_ptr(), rows.shape) for rows in map(table.rows, range(2))]
        table.add_all({0: numbered(8), 1: numbered(3)})
        table.release(0, [1, 2])
        table.add_all({0: numbered(2)})
        assert [(rows.data_ptr(), rows.shape) for rows in map(table.rows, range(2))] == before
        assert [shape for _, shape in before] == [(9, 4)] * 2

    def test_a_row_loaded_later_is_seen_by_who_holds_the_tensor(self) -> None:
        table = DirectionTable(1, 4, CPU)
        held = table.rows(0)
        slot = table.add(0, torch.full((4,), 5.0))
        assert torch.equal(held[slot], torch.full((4,), 5.0))


class TestRoom:
    def test_rows_of_several_blocks_are_stored_all_or_none(self) -> None:
        table = DirectionTable(3, 4, CPU, capacity=4)
        table.add(2, torch.ones(4))
        with pytest.raises(VectorTableFullError) as caught:
            table.add_all({0: numbered(3), 1: numbered(4), 2: numbered(5)})
        error = caught.value
        assert (error.block, error.needed, error.free, error.total) == (2, 5, 2, 3)
        assert str(error) == (
            "the vector needs 5 of block 2's rows, and 2 of 3 are free; a larger vector_table_bytes makes room"
        )
        assert table.add_all({0: numbered(3), 1: numbered(3), 2: numbered(2)}) == {
            0: (1, 2, 3),
            1: (1, 2, 3),
            2: (2, 3),
        }

    def test_the_fullest_block_tells_how_full_the_table_is(self) -> None:
        table = DirectionTable(3, 4, CPU, capacity=6)
        assert table.fullest() == (0, 5)
        table.add_all({0: numbered(2), 1: numbered(4)})
        assert table.fullest() == (4, 5)
        table.release(1, [1, 2, 3])
        assert table.fullest() == (2, 5)

    def test_rows_that_can_not_be_stored_give_their_slots_back(self) -> None:
        table = DirectionTable(2, 4, CPU, capacity=4)
        with pytest.raises(RuntimeError, match="shape mismatch"):
            table.add_all({0: numbered(3), 1: numbered(2, width=5)})
        assert table.add_all({0: numbered(3), 1: numbered(3)}) == {0: (1, 2, 3), 1: (1, 2, 3)}

    def test_released_slots_are_handed_out_again_the_lowest_first(self) -> None:
        table = DirectionTable(1, 4, CPU, capacity=6)
        table.add_all({0: numbered(4)})
        table.release(0, (4, 2))
        assert table.add_all({0: numbered(3, first=10)}) == {0: (2, 4, 5)}
        assert table.rows(0)[:, 0].tolist() == [0, 1, 10, 3, 11, 12]

    @pytest.mark.parametrize("slots", [[0], [3], [1, 1], [1, 3], [-1]])
    def test_only_what_is_handed_out_can_be_given_back(self, slots: list[int]) -> None:
        table = DirectionTable(2, 4, CPU, capacity=4)
        table.add_all({0: numbered(2), 1: numbered(3)})
        with pytest.raises(ValueError, match="of block 0: each must be handed out, and named once"):
            table.release(0, slots)
        assert table.add_all({0: numbered(1)}) == {0: (3,)}

    @given(st.lists(st.one_of(st.integers(0, 5), st.lists(st.integers(1, 12), max_size=6)), max_size=20))
    def test_no_slot_is_handed_out_twice_and_none_is_lost(self, moves: list[int | list[int]]) -> None:
        table = DirectionTable(1, 4, CPU, capacity=10)
        held: dict[int, float] = {}
        number = 1
        for move in moves:
            if isinstance(move, list):
                given_back = sorted(set(move) & held.keys())
                table.release(0, given_back)
                for slot in given_back:
                    del held[slot]
            elif move <= 9 - len(held):
                (slots,) = table.add_all({0: numbered(move, first=number)}).values()
                assert held.keys().isdisjoint(slots)
                held |= {slot: float(number + index) for index, slot in enumerate(slots)}
                number += move
            else:
                with pytest.raises(VectorTableFullError):
                    table.add_all({0: numbered(move)})
        assert {slot: table.rows(0)[slot, 0].item() for slot in held} == held
        assert held.keys() <= set(range(1, 10))

    def test_threads_get_slots_of_their_own(self) -> None:
        table = DirectionTable(1, 4, CPU, capacity=401)
        taken: list[tuple[int, int]] = []

        def take(number: int) -> None:
            for _ in range(100):
                slot = table.add(0, torch.full((4,), float(number)))
                taken.append((slot, number))

        threads = [threading.Thread(target=take, args=(number,)) for number in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(slot for slot, _ in taken) == list(range(1, 401))
        assert all(table.rows(0)[slot, 0] == number for slot, number in taken)


class TestSize:
    def test_a_table_on_the_cpu_takes_memory_where_it_is_written_only(self) -> None:
        process = psutil.Process()
        before = process.memory_info().rss
        table = DirectionTable(8, 2048, CPU)
        table.add_all({block: torch.ones(10, 2048) for block in range(8)})
        assert table.rows(7).nbytes == 1 << 27
        assert process.memory_info().rss - before < 1 << 27

    @pytest.mark.parametrize(
        ("size", "blocks", "width", "rows"),
        [
            (None, 3, 32, DEFAULT_CAPACITY),
            (None, 32, 4096, 2048),
            (None, 1 << 14, 1 << 14, 2),
            (1 << 30, 3, 32, 2_796_202),
            (2 * 4 * 3 * 32, 3, 32, 2),
        ],
    )
    def test_the_limit_in_bytes_decides_how_many_rows_there_are(
        self, size: int | None, blocks: int, width: int, rows: int
    ) -> None:
        assert EngineLimits(vector_table_bytes=size).vector_rows(blocks, width) == rows

    def test_a_limit_without_room_for_one_vector_is_refused(self) -> None:
        with pytest.raises(ModelError) as caught:
            EngineLimits(vector_table_bytes=767).vector_rows(3, 32)
        assert str(caught.value) == (
            "vector_table_bytes is 767; expected at least 768, two rows of each of the model's 3 blocks"
        )

    @pytest.mark.parametrize("capacity", [1 << 45, 1 << 70])
    def test_a_table_beyond_the_memory_is_refused(self, capacity: int) -> None:
        with pytest.raises(ModelError, match=f"no room for a vector table of {capacity * 128} bytes on cpu"):
            DirectionTable(1, 32, CPU, capacity)
