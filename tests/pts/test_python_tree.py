from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from steering_pts.oracles.python.inside import tree


def nest(folder: Path, depth: int, name: str) -> None:
    """Folders within each other, deeper than a path can say."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        inner = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


@pytest.mark.parametrize("name", ["d", "moved-1", "n" * 200])
def test_folders_deeper_than_the_stack_and_any_path_are_removed(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    nest(folder, 1200 if name == "d" else 60, name)

    tree.remove(str(folder))

    assert not folder.exists()


def test_read_only_content_is_removed_and_no_link_is_followed(tmp_path: Path) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    (folder / "closed" / "inner").mkdir(parents=True)
    (folder / "closed" / "file").write_text("x")
    outside.mkdir()
    (outside / "kept").write_text("x")
    (folder / "link").symlink_to(outside)
    (folder / "closed" / "inner" / "link").symlink_to(outside)
    (folder / "closed" / "inner").chmod(0)
    (folder / "closed").chmod(0o500)
    folder.chmod(0o700)

    tree.remove(str(folder))

    assert not folder.exists()
    assert (outside / "kept").exists()


def test_a_folder_that_has_gone_is_no_error(tmp_path: Path) -> None:
    tree.remove(str(tmp_path / "nothing"))

    assert not tree.exceeds(str(tmp_path / "nothing"), 0)


def test_content_counts_in_blocks_and_small_files_count_too(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(100_000))
    assert not tree.exceeds(str(tmp_path), 200_000)
    assert tree.exceeds(str(tmp_path), 90_000)

    for number in range(100):
        (tmp_path / f"{number}").touch()
    assert tree.exceeds(str(tmp_path), 400_000)


def test_what_a_link_points_to_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(bytes(1_000_000))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "outside")

    assert not tree.exceeds(str(folder), 100_000)


def test_what_is_no_folder_any_more_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "large").write_bytes(bytes(1_000_000))
    (tmp_path / "file").write_bytes(bytes(1_000_000))
    (tmp_path / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")

    assert not any(tree.exceeds(str(tmp_path / name), 100_000) for name in ("file", "link", "loop"))


def test_a_folder_may_become_a_link_or_a_file_while_it_is_looked_at(tmp_path: Path) -> None:
    outside, folder, away = tmp_path / "outside", tmp_path / "folder", tmp_path / "away"
    for made in (outside, folder, folder / "inner", away, away / "file"):
        made.mkdir()
    (outside / "large").write_bytes(bytes(1_000_000))
    (away / "link").symlink_to(outside)
    looked = threading.Event()

    def exchange() -> None:
        while not looked.is_set():
            for name in ("link", "file"):
                (folder / "inner").rename(away / "kept")
                (away / name).rename(folder / "inner")
                (folder / "inner").rename(away / name)
                (away / "kept").rename(folder / "inner")

    (away / "file").rmdir()
    (away / "file").touch()
    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        assert not any(tree.exceeds(str(folder), 100_000) for _ in range(3000))
    finally:
        looked.set()
        thread.join()


def test_absurd_depth_is_too_much_at_once(tmp_path: Path) -> None:
    nest(tmp_path, 60, "d")
    assert not tree.exceeds(str(tmp_path), 1 << 30)

    nest(tmp_path, 70, "e")
    assert tree.exceeds(str(tmp_path), 1 << 30)
