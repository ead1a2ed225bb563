"""Versions of a vector side by side: replaced, pinned, leased and unloaded; nothing is ever loaded in part."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import psutil
import pytest
import torch

from steering_engine.errors import VectorExistsError, VectorMemoryError, VectorTableFullError
from steering_engine.loading import LoadedModel, load_model
from steering_engine.steering.table import DirectionTable
from steering_engine.vectors.file import encode_vector
from steering_engine.vectors.registered import RegisteredVector
from steering_engine.vectors.registry import VectorRegistry
from steering_spec import InvalidRequestError, VectorRef, Violation, ViolationKind
from tests.support.models import save_tiny_model
from tests.support.vector_files import full_vector, metadata_size
from tests.support.vectors import random_vector

ROW = 32 * 4  # bytes of a row, of which a vector is kept twice: as read, and in the table


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(str(save_tiny_model(tmp_path_factory.mktemp("versions") / "model")), "cpu", "float32")


@pytest.fixture(scope="module")
def files(loaded: LoadedModel) -> list[bytes]:
    """Two versions of a vector, and a third that needs rows of all kinds."""
    return [
        encode_vector(random_vector(loaded, "calm", [0], seed=1)),
        encode_vector(random_vector(loaded, "calm", [0, 1], seed=2)),
        encode_vector(full_vector(loaded)),
    ]


@pytest.fixture
def table(loaded: LoadedModel) -> DirectionTable:
    return DirectionTable(loaded.block_count, loaded.hidden_size, loaded.device, capacity=20)


@pytest.fixture
def registry(loaded: LoadedModel, table: DirectionTable) -> VectorRegistry:
    return VectorRegistry(loaded, table)


def names(registry: VectorRegistry) -> list[str]:
    return [info.name for info in registry.infos(all_versions=True)]


class TestReplacing:
    def test_the_plain_name_means_the_new_version_and_a_pin_either(
        self, registry: VectorRegistry, files: list[bytes]
    ) -> None:
        old = registry.load("calm", files[0])
        new = registry.load("calm", files[1], replace=True)
        assert (new.name, new.current) == ("vectors/calm", True)
        for ref, digest in (
            (VectorRef("calm"), new.sha256),
            (VectorRef("calm", new.sha256), new.sha256),
            (VectorRef("calm", old.sha256), old.sha256),
        ):
            facts = registry.facts(ref)
            assert facts is not None
            assert facts.sha256 == digest

    def test_only_current_versions_are_listed_unless_all_are_asked_for(
        self, registry: VectorRegistry, files: list[bytes]
    ) -> None:
        old = registry.load("calm", files[0])
        registry.load("calm-b", files[0])
        new = registry.load("calm", files[1], replace=True)
        assert registry.infos() == [new, registry.info(VectorRef("calm-b"))]
        assert names(registry) == ["vectors/calm", f"vectors/calm@{old.sha256}", "vectors/calm-b"]
        assert [info.pinned_name for info in registry.infos(all_versions=True)][1] == names(registry)[1]

    def test_going_back_takes_no_new_rows(self, registry: VectorRegistry, files: list[bytes]) -> None:
        old = registry.load("calm", files[0])
        registry.load("calm", files[1], replace=True)
        before = registry.table_rows(), registry.memory()
        with pytest.raises(VectorExistsError, match="is loaded with the digest"):
            registry.load("calm", files[0])
        assert registry.load("calm", files[0], replace=True) == old
        assert (registry.table_rows(), registry.memory()) == before

    def test_a_file_that_another_has_not_to_replace_may_be_new(
        self, registry: VectorRegistry, files: list[bytes]
    ) -> None:
        assert registry.load("calm", files[0], replace=True).current

    def test_what_is_not_approved_changes_nothing(self, registry: VectorRegistry, files: list[bytes]) -> None:
        asked: list[RegisteredVector] = []

        def refuse(vector: RegisteredVector) -> None:
            asked.append(vector)
            raise InvalidRequestError([Violation("source", "no")])

        old = registry.load("calm", files[0])
        before = registry.infos(all_versions=True), registry.memory(), registry.table_rows()
        with pytest.raises(InvalidRequestError):
            registry.load("calm", files[1], replace=True, approve=refuse)
        (vector,) = asked
        assert (vector.id, vector.facts.layers) == ("calm", (0, 1))
        assert (registry.infos(all_versions=True), registry.memory(), registry.table_rows()) == before
        assert registry.load("calm", files[0], approve=refuse) == old  # already current: nothing to approve


class TestUnloading:
    def test_an_unloaded_vector_is_found_by_nobody_and_its_rows_are_free(
        self, registry: VectorRegistry, files: list[bytes]
    ) -> None:
        info = registry.load("calm", files[2])
        assert registry.table_rows()[0] == 4
        unloading = registry.unload("vectors/calm")
        assert unloading.info == info
        assert unloading.freed.done()
        assert (registry.infos(all_versions=True), registry.count()) == ([], 0)
        assert (registry.table_rows()[0], registry.memory().used) == (0, 0)
        for ref in (VectorRef("calm"), VectorRef("calm", info.sha256)):
            assert registry.find(ref) is None
            with pytest.raises(InvalidRequestError) as caught:
                registry.unload(ref.name)
            assert caught.value.kind is ViolationKind.NOT_FOUND

    def test_the_current_version_goes_and_the_others_stay_under_their_pins(
        self, registry: VectorRegistry, files: list[bytes]
    ) -> None:
        old = registry.load("calm", files[0])
        new = registry.load("calm", files[1], replace=True)
        assert registry.unload("calm").info.sha256 == new.sha256
        assert registry.find(VectorRef("calm")) is None
        assert names(registry) == [old.pinned_name]
        assert registry.load("calm", files[0]).current  # the plain name was free

    def test_a_pinned_version_goes_and_the_current_one_stays(
        self, registry: VectorRegistry, files: list[bytes]
    ) -> None:
        old = registry.load("calm", files[0])
        registry.load("calm", files[1], replace=True)
        assert registry.unload(old.pinned_name).info.sha256 == old.sha256
        assert names(registry) == ["vectors/calm"]

    @pytest.mark.parametrize("name", ["", "Upper", "calm@12"])
    def test_a_name_that_is_none_is_refused(self, registry: VectorRegistry, name: str) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            registry.unload(name)
        assert [violation.field for violation in caught.value.violations] == ["name"]


class TestLeases:
    def test_a_lease_keeps_what_its_request_first_found(
        self, registry: VectorRegistry, files: list[bytes]
    ) -> None:
        old = registry.load("calm", files[0])
        lease = registry.lease()
        held = lease.find(VectorRef("calm"))
        assert held is not None
        registry.load("calm", files[1], replace=True)
        registry.unload(old.pinned_name)
        assert lease.find(VectorRef("calm")) is held
        assert held.facts == lease.facts(VectorRef("calm"))
        lease.release()

    def test_what_is_leased_is_freed_with_its_last_lease(
        self, registry: VectorRegistry, table: DirectionTable, files: list[bytes]
    ) -> None:
        registry.load("calm", files[0])
        leases = [registry.lease() for _ in range(3)]
        for lease in leases:
            assert lease.find(VectorRef("calm")) is not None
        row = table.rows(0)[1].clone()
        unloading = registry.unload("calm")
        assert unloading.info.running_requests == 3
        registry.load("calm", files[1])  # takes other rows, for those are read
        for lease in leases:
            assert not unloading.freed.done()
            assert torch.equal(table.rows(0)[1], row)
            lease.release()
        assert unloading.freed.done()
        registry.load("again", files[0])
        again = registry.find(VectorRef("again"))
        assert again is not None
        assert again.slots == {0: 1}

    def test_a_request_counts_once_by_whatever_names(
        self, registry: VectorRegistry, files: list[bytes]
    ) -> None:
        digest = registry.load("calm", files[0]).sha256
        lease = registry.lease()
        lease.find(VectorRef("calm"))
        lease.find(VectorRef("calm", digest))
        assert [info.running_requests for info in registry.infos()] == [1]
        lease.release()
        lease.release()
        assert [info.running_requests for info in registry.infos()] == [0]

    def test_a_lease_that_was_released_finds_nothing(
        self, registry: VectorRegistry, files: list[bytes]
    ) -> None:
        registry.load("calm", files[0])
        lease = registry.lease()
        lease.release()
        assert lease.facts(VectorRef("calm")) is None
        assert registry.unload("calm").freed.done()

    def test_what_a_lease_did_not_find_stays_unfound_for_it(
        self, registry: VectorRegistry, files: list[bytes]
    ) -> None:
        lease = registry.lease()
        assert lease.find(VectorRef("calm")) is None
        registry.load("calm", files[0])
        assert lease.find(VectorRef("calm")) is None

    def test_waiting_for_the_end_can_not_be_cancelled(
        self, registry: VectorRegistry, files: list[bytes]
    ) -> None:
        registry.load("calm", files[0])
        lease = registry.lease()
        lease.find(VectorRef("calm"))
        freed = registry.unload("calm").freed
        assert not freed.cancel()
        lease.release()
        assert freed.result() is None


class TestMemory:
    def test_a_vector_takes_its_tensors_twice_its_contexts_and_its_metadata(
        self, registry: VectorRegistry, files: list[bytes]
    ) -> None:
        one = 2 * ROW + metadata_size(files[0])
        full = 2 * 9 * ROW + 6 * 300 + metadata_size(files[2])
        assert registry.load("one", files[0]).memory_bytes == one
        assert registry.load("full", files[2]).memory_bytes == full
        assert registry.memory().used == one + full

    def test_what_does_not_fit_is_refused_and_fits_when_another_has_gone(
        self, loaded: LoadedModel, table: DirectionTable, files: list[bytes]
    ) -> None:
        first, second = (2 * ROW * rows + metadata_size(files[rows - 1]) for rows in (1, 2))
        registry = VectorRegistry(loaded, table, memory_bytes=first + second - 1)
        registry.load("calm", files[0])
        with pytest.raises(VectorMemoryError) as caught:
            registry.load("calm", files[1], replace=True)
        assert str(caught.value) == (
            f"the vector needs {second} bytes, and loaded vectors take {first} of {first + second - 1} already; "
            "unload some, or make vector_memory_bytes larger"
        )
        assert (names(registry), registry.table_rows()[0]) == (["vectors/calm"], 1)
        registry.unload("calm")
        assert registry.load("calm", files[1]).current

    def test_what_is_still_leased_counts(
        self, loaded: LoadedModel, table: DirectionTable, files: list[bytes]
    ) -> None:
        registry = VectorRegistry(loaded, table, memory_bytes=3 * ROW + metadata_size(files[0]))
        registry.load("calm", files[0])
        lease = registry.lease()
        lease.find(VectorRef("calm"))
        registry.unload("calm")
        with pytest.raises(VectorMemoryError):
            registry.load("calm", files[0])
        lease.release()
        registry.load("calm", files[0])

    def test_a_replacement_without_rows_leaves_the_old_version(
        self, loaded: LoadedModel, files: list[bytes]
    ) -> None:
        small = DirectionTable(loaded.block_count, loaded.hidden_size, loaded.device, capacity=4)
        registry = VectorRegistry(loaded, small)
        before = registry.load("calm", files[0])
        with pytest.raises(VectorTableFullError):
            registry.load("calm", files[2], replace=True)
        assert registry.infos(all_versions=True) == [before]
        assert (registry.memory().used, registry.table_rows()) == (before.memory_bytes, (1, 3))

    def test_a_thousand_loads_and_unloads_leave_memory_and_table_as_they_were(
        self, registry: VectorRegistry, files: list[bytes]
    ) -> None:
        def change() -> None:
            old = registry.load("calm", files[0])
            registry.load("calm", files[2], replace=True)
            registry.unload(old.pinned_name)
            registry.unload("calm")

        change()
        gc.collect()
        before = len(gc.get_objects()), psutil.Process().memory_info().rss
        for _ in range(500):  # two of each
            change()
        gc.collect()
        objects, memory = len(gc.get_objects()), psutil.Process().memory_info().rss
        assert objects - before[0] < 500  # one object kept each time would be twice as many
        assert memory - before[1] < 16 << 20
        assert (registry.memory().used, registry.table_rows()[0]) == (0, 0)

    def test_threads_that_load_lease_and_unload_lose_nothing(
        self, registry: VectorRegistry, files: list[bytes]
    ) -> None:
        failures: list[BaseException] = []

        def change(number: int) -> None:
            try:
                for _ in range(20):
                    registry.load("shared", files[number % 3], replace=True)
                    lease = registry.lease()
                    held = lease.find(VectorRef("shared"))
                    try:
                        registry.unload("shared")
                    except InvalidRequestError:  # another thread was first
                        assert held is None or lease.find(VectorRef("shared")) is held
                    lease.release()
            except BaseException as error:  # noqa: BLE001 -- told where the test can see it
                failures.append(error)

        threads = [threading.Thread(target=change, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        for info in registry.infos(all_versions=True):
            registry.unload(info.pinned_name)
        assert (registry.memory().used, registry.table_rows()[0], registry.count()) == (0, 0, 0)


def test_a_link_out_of_the_directory_is_not_loaded_and_one_inside_is(
    registry: VectorRegistry, files: list[bytes], tmp_path: Path
) -> None:
    directory = tmp_path / "vectors"
    (directory / "real").mkdir(parents=True)
    for path in (tmp_path / "outside.safetensors", directory / "real" / "inside.safetensors"):
        path.write_bytes(files[0])
    (directory / "out.safetensors").symlink_to(tmp_path / "outside.safetensors")
    (directory / "in.safetensors").symlink_to("real/inside.safetensors")
    (directory / "loop.safetensors").symlink_to("loop.safetensors")
    infos, errors = registry.load_directory(directory)
    assert [info.name for info in infos] == ["vectors/in"]
    assert [error.source for error in errors] == ["loop.safetensors", "out.safetensors"]
    assert errors[1].problems == ("a link that leads out of the vector directory",)
