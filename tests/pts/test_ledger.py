import errno
import fcntl
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steering_pts.data import Problem
from steering_pts.errors import LedgerError, LedgerLockedError, LedgerSettingsError
from steering_pts.export import TABLES
from steering_pts.ledger import (
    JSON,
    AlternativeCount,
    Arm,
    CompletionRecord,
    ConfirmationRecord,
    Ledger,
    LedgerReader,
    NomineeRecord,
    PivotRecord,
    RolloutKey,
    RolloutRecord,
    ScoreRecord,
)
from steering_pts.ledger.lock import WriterLock
from steering_pts.ledger.tables import COMPLETIONS, ROLLOUTS, SCORES
from steering_pts.oracles import Verdict

SETTINGS: dict[str, JSON] = {"tau": 0.2, "seed": 7, "model": "tiny", "blocks": [0, 2]}
PROBLEM = Problem("p1", "1 + 2 * 3?", "7", {"form": "sum-product"})
OTHER_PROBLEM = Problem("p0", "2 * 3?", "6", {})
COMPLETION = CompletionRecord(
    id="c1",
    problem_id="p1",
    index=0,
    seed=2**63 - 1,
    prompt_ids=(1, 2),
    ids=(5, 6, 2**31 - 1),
    verdict=Verdict.CORRECT,
    extracted="7",
    finish_reason="stop",
)
SCORE = ScoreRecord("c1", (0.1, 1.0, 1 / 3))
ROLLOUT = RolloutRecord(
    RolloutKey("c1", 1, "alternative", "explore", 0), 11, (9, 8), Verdict.INCORRECT, None, tokens=2
)
NOMINEE = NomineeRecord(
    completion_id="c1",
    position=1,
    sign=-1,
    posterior=0.75,
    effect=-0.3,
    explored=(1, 2, 3),
    on_path=20,
    alternative=30,
)
CONFIRMATION = ConfirmationRecord(
    completion_id="c1",
    position=1,
    x1=20,
    n1=24,
    censored1=3,
    x2=2,
    n2=23,
    censored2=1,
    leave=0.9,
    p_value=1e-4,
    delta=0.5,
    low=0.3,
    high=0.6,
)
PIVOT = PivotRecord(
    completion_id="c1",
    problem_id="p1",
    position=1,
    ids=(6,),
    probability=0.4,
    delta=0.5,
    low=0.3,
    high=0.6,
    p_value=1e-4,
    q_value=2e-4,
    chosen_ids=(6,),
    rejected_ids=(9, 8),
    alternatives=(AlternativeCount((9, 8), 1, 20), AlternativeCount((10,), 0, 0)),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.ledger"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger.open(path, SETTINGS) as ledger:
        yield ledger


@pytest.fixture
def filled(ledger: Ledger) -> Ledger:
    fill(ledger)
    return ledger


def fill(ledger: Ledger) -> None:
    ledger.add_problems([PROBLEM, OTHER_PROBLEM])
    ledger.add_completions([COMPLETION])
    ledger.add_scores([SCORE])
    ledger.add_rollouts([ROLLOUT])
    ledger.add_nominees([NOMINEE])
    ledger.add_confirmations([CONFIRMATION])
    ledger.write_pivots([PIVOT])


def rollout(index: int, position: int = 1, arm: Arm = "alternative", stage: str = "explore") -> RolloutRecord:
    return replace(ROLLOUT, key=RolloutKey("c1", position, arm, stage, index))


def decode(ids: Sequence[int]) -> str:
    return "".join(f"<{token}>" for token in ids)


def contents(ledger: LedgerReader) -> tuple[object, ...]:
    return (
        ledger.problems(),
        ledger.completions(),
        ledger.scores(),
        ledger.rollouts_for("c1"),
        ledger.nominees(),
        ledger.confirmations(),
        ledger.pivots(),
    )


def test_what_is_added_is_there_after_reopening(path: Path) -> None:
    with Ledger.open(path, SETTINGS) as ledger:
        fill(ledger)

    with Ledger.open(path, SETTINGS) as ledger:
        assert contents(ledger) == (
            [PROBLEM, OTHER_PROBLEM],
            [COMPLETION],
            [SCORE],
            [ROLLOUT],
            [NOMINEE],
            [CONFIRMATION],
            [PIVOT],
        )


def test_one_completion_and_one_score_are_found_by_id(filled: Ledger) -> None:
    assert (filled.completion("c1"), filled.score("c1")) == (COMPLETION, SCORE)
    assert (filled.completion("c2"), filled.score("c2")) == (None, None)


def test_completions_are_sorted_by_problem_and_index(filled: Ledger) -> None:
    later = replace(COMPLETION, id="c3", index=10)
    between = replace(COMPLETION, id="c2", index=2)
    other = replace(COMPLETION, id="c4", problem_id="p0")
    filled.add_completions([later, between, other])

    assert filled.completions() == [other, COMPLETION, between, later]
    assert filled.completions("p0") == [other]


def test_rollouts_are_listed_by_key_and_stage(filled: Ledger) -> None:
    confirming = rollout(0, stage="confirm")
    filled.add_rollouts([rollout(2), confirming, rollout(1)])

    assert filled.rollouts_for("c1") == [confirming, ROLLOUT, rollout(1), rollout(2)]
    assert filled.rollouts_for("c1", stage="confirm") == [confirming]
    assert filled.rollouts_for("c2") == []


def test_rollouts_are_found_in_the_order_asked_for(filled: Ledger) -> None:
    filled.add_rollouts([rollout(1), rollout(2)])
    missing = RolloutKey("c1", 1, "on_path", "explore", 0)

    found = filled.find_rollouts([rollout(2).key, missing, ROLLOUT.key])

    assert list(found.items()) == [(rollout(2).key, rollout(2)), (ROLLOUT.key, ROLLOUT)]


def test_adding_the_same_again_does_nothing(filled: Ledger) -> None:
    before = contents(filled)
    fill(filled)

    assert contents(filled) == before


@pytest.mark.parametrize(
    "add",
    [
        lambda ledger: ledger.add_problems([replace(PROBLEM, answer="8")]),
        lambda ledger: ledger.add_completions([replace(COMPLETION, ids=(5,))]),
        lambda ledger: ledger.add_completions([replace(COMPLETION, id="c2")]),
        lambda ledger: ledger.add_scores([replace(SCORE, probabilities=(0.1, 1.0, 0.3))]),
        lambda ledger: ledger.add_rollouts([replace(ROLLOUT, verdict=Verdict.CENSORED)]),
        lambda ledger: ledger.add_nominees([replace(NOMINEE, sign=1)]),
        lambda ledger: ledger.add_confirmations([replace(CONFIRMATION, x1=19)]),
    ],
)
def test_adding_something_else_in_its_place_is_an_error(
    filled: Ledger, add: Callable[[Ledger], None]
) -> None:
    before = contents(filled)

    with pytest.raises(LedgerError, match="there already with other contents"):
        add(filled)

    assert contents(filled) == before


def test_of_a_batch_with_an_error_nothing_is_added(filled: Ledger) -> None:
    with pytest.raises(LedgerError, match="rollout c1, 1, alternative, explore, 0"):
        filled.add_rollouts([rollout(1), replace(ROLLOUT, seed=12)])

    assert filled.rollouts_for("c1") == [ROLLOUT]


def test_a_rollout_of_an_unknown_completion_is_an_error(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="FOREIGN KEY"):
        ledger.add_rollouts([ROLLOUT])


def test_pivots_are_replaced_as_a_set(filled: Ledger) -> None:
    other = replace(PIVOT, position=2)
    filled.write_pivots([other])

    assert filled.pivots() == [other]


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**31 - 1)), st.lists(st.floats(0, 1)), st.text())
def test_ids_probabilities_and_text_come_back_exactly(
    ids: list[int], probabilities: list[float], text: str
) -> None:
    completion = replace(COMPLETION, ids=tuple(ids), extracted=text)
    score = ScoreRecord("c1", tuple(probabilities))

    assert COMPLETIONS.decode(COMPLETIONS.encode(completion)) == completion
    assert ROLLOUTS.decode(ROLLOUTS.encode(replace(ROLLOUT, ids=tuple(ids)))).ids == tuple(ids)
    assert SCORES.decode(SCORES.encode(score)) == score


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(COMPLETION, id=""), "id must not be empty"),
        (lambda: replace(COMPLETION, seed=2**63), "seed must be in"),
        (lambda: replace(COMPLETION, ids=(2**31,)), "token ids"),
        (lambda: replace(ROLLOUT, ids=(-1,)), "token ids"),
        (lambda: RolloutKey("c", -1, "on_path", "explore", 0), "position must be in"),
        (lambda: RolloutKey("c", 0, "other", "explore", 0), "arm must be one of alternative, on_path, not"),  # type: ignore[arg-type]
        (lambda: ScoreRecord("c", (float("nan"),)), "probability must be in"),
        (lambda: replace(NOMINEE, sign=0), "sign must be"),
        (lambda: replace(NOMINEE, explored=(1, 2)), "three counts"),  # type: ignore[arg-type]
        (lambda: replace(NOMINEE, explored=(1, -2, 3)), "three counts"),
        (lambda: replace(NOMINEE, effect=-1.1), "effect must be in"),
        (lambda: replace(NOMINEE, on_path=-1), "on_path must be in"),
        (lambda: replace(CONFIRMATION, leave=1.1), "leave must be in"),
        (lambda: replace(CONFIRMATION, censored2=-1), "censored2 must be in"),
        (lambda: replace(CONFIRMATION, x1=25), "25 of 24"),
        (lambda: replace(PIVOT, low=0.7), "not an effect"),
        (lambda: replace(PIVOT, ids=()), "at least one token"),
        (lambda: replace(PIVOT, chosen_ids=(2**31,)), "token ids"),
        (lambda: AlternativeCount((), 1, 0), "at least one token"),
        (lambda: AlternativeCount((1,), -1, 0), "successes must be in"),
    ],
)
def test_a_record_that_makes_no_sense_can_not_be_made(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_settings_are_kept(path: Path) -> None:
    Ledger.open(path, SETTINGS).close()

    with Ledger.read(path) as ledger:
        assert ledger.settings() == SETTINGS


def test_every_setting_that_differs_is_named_with_both_values(path: Path) -> None:
    Ledger.open(path, SETTINGS).close()

    with pytest.raises(LedgerSettingsError) as error:
        Ledger.open(path, {"tau": 0.3, "seed": 7, "model": "tiny", "unit": "token"})

    assert error.value.differences == (
        "blocks was [0, 2] and is now not set",
        "tau was 0.2 and is now 0.3",
        'unit was not set and is now "token"',
    )


def test_the_lock_is_free_after_settings_were_refused(path: Path) -> None:
    Ledger.open(path, SETTINGS).close()
    with pytest.raises(LedgerSettingsError):
        Ledger.open(path, {})

    Ledger.open(path, SETTINGS).close()


def test_a_setting_that_is_not_json_is_refused(path: Path) -> None:
    with pytest.raises(LedgerError, match="setting 'tau' is not JSON"):
        Ledger.open(path, {"tau": float("nan")})


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("some notes, long enough to be no header of a database file\n" * 20)
    before = path.read_bytes()

    for opening in (lambda: Ledger.open(path, SETTINGS), lambda: Ledger.read(path)):
        with pytest.raises(LedgerError, match="file is not a database"):
            opening()
    assert path.read_bytes() == before


def test_a_database_that_is_no_ledger_is_refused_and_left_alone(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE notes (text)")
    connection.close()
    before = path.read_bytes()

    for opening in (lambda: Ledger.open(path, SETTINGS), lambda: Ledger.read(path)):
        with pytest.raises(LedgerError, match="is not a ledger: its application id is 0x0"):
            opening()
    assert path.read_bytes() == before


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a sound ledger."""
    path = tmp_path_factory.mktemp("whole") / "run.ledger"
    with Ledger.open(path, {**SETTINGS, "search.tau": 0.2}) as ledger:
        fill(ledger)
    return path.read_bytes()


@given(data=st.data(), count=st.sampled_from([1, 5, 50]))
def test_a_damaged_ledger_is_read_or_is_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, data: st.DataObject, count: int
) -> None:
    places = st.sampled_from([place for place, byte in enumerate(whole) if byte])
    changes = data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=count, max_size=count))
    damaged = bytearray(whole)
    for place, byte in changes:
        damaged[place] = byte
    path = tmp_path_factory.mktemp("damaged") / "run.ledger"
    path.write_bytes(damaged)

    with suppress(LedgerError), Ledger.read(path) as reader:
        for read in (
            reader.settings,
            reader.summary,
            lambda: contents(reader),
            lambda: [list(table(reader).rows) for table in TABLES.values()],
            lambda: reader.export_pivots_jsonl(path.with_name("pivots.jsonl"), decode),
        ):
            with suppress(LedgerError):
                read()
    with suppress(LedgerError):
        Ledger.open(path, {**SETTINGS, "search.tau": 0.2}).close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "UPDATE rollouts SET verdict = 'maybe'",
            "a verdict among the rollouts can't be read ('maybe' is not",
        ),
        ("UPDATE rollouts SET stage = CAST(x'ff' AS TEXT)", "Could not decode to UTF-8 column 'stage'"),
        ("UPDATE rollouts SET tokens = 9223372036854775807", "integer overflow"),
    ],
)
def test_a_summary_of_damaged_rows_says_that_the_file_is_damaged(
    filled: Ledger, path: Path, change: str, said: str
) -> None:
    filled.add_rollouts([rollout(1)])
    changed(path, change)

    with pytest.raises(
        LedgerError, match=r"run\.ledger: .*the file is damaged and was left as it is"
    ) as error:
        filled.summary()
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("change", "read", "said"),
    [
        (
            "UPDATE settings SET value = '0.2}' WHERE key = 'tau'",
            LedgerReader.settings,
            "setting 'tau' can't be",
        ),
        (
            "UPDATE problems SET fields = '[1]'",
            LedgerReader.problems,
            "problem 'p1' can't be read (fields are not",
        ),
        (
            "UPDATE completions SET ids = x'01'",
            LedgerReader.completions,
            "completion 'c1' can't be read (buffer",
        ),
        (
            "UPDATE nominees SET explored = '3'",
            LedgerReader.nominees,
            "nominee 'c1' can't be read (cannot unpack",
        ),
        ("UPDATE pivots SET alternatives = '[[1, 2]]'", LedgerReader.pivots, "pivot 'c1' can't be read"),
        (
            "UPDATE rollouts SET verdict = 'maybe'",
            lambda ledger: list(ledger.stream(ROLLOUTS)),
            "rollout 'c1' can't be read ('maybe' is not a valid Verdict)",
        ),
    ],
)
def test_a_damaged_row_is_named(
    filled: Ledger, path: Path, change: str, read: Callable[[LedgerReader], object], said: str
) -> None:
    changed(path, change)

    with pytest.raises(LedgerError, match="the file is damaged and was left as it is") as error:
        read(filled)
    assert said in str(error.value)


def test_a_folder_where_nothing_can_be_written_can_be_read(whole: bytes) -> None:
    # Not below tmp_path, which root's tests can't open to the other user that they have to become.
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "run.ledger")
        path.write_bytes(whole)
        path.chmod(0o644)
        path.parent.chmod(0o555)

        assert read_as_somebody(path) == f"{SETTINGS}\n"

        path.parent.chmod(0o755)
        path.with_name("run.ledger-wal").write_bytes(b"changes")
        path.parent.chmod(0o555)
        said = read_as_somebody(path)
        path.parent.chmod(0o755)
    assert f"{path} can't be read where no file can be made beside it" in said
    assert "its last changes are still in run.ledger-wal" in said


def test_a_ledger_that_is_not_ours_to_read_says_so(whole: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "run.ledger")
        path.write_bytes(whole)
        path.chmod(0)
        path.parent.chmod(0o755)

        assert read_as_somebody(path) == f"{path} can't be read: Permission denied\n"


def read_as_somebody(path: Path) -> str:
    """The settings of a ledger as a user reads them who is not root, or what is wrong."""
    code = f"""
import os
from pathlib import Path
from steering_pts.errors import LedgerError
from steering_pts.ledger import Ledger
if os.getuid() == 0:
    os.setuid(65534)
try:
    with Ledger.read(Path({str(path)!r})) as ledger:
        print({{key: ledger.settings()[key] for key in {list(SETTINGS)}}})
except LedgerError as error:
    print(error)
"""
    return subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.mark.parametrize(
    "table", ["settings", "problems", "completions", "scores", "rollouts", "nominees", "confirmations"]
)
@pytest.mark.parametrize("change", ["DELETE FROM {}", "UPDATE {0} SET {1} = {1}"])
def test_what_a_ledger_holds_can_only_be_added_to(
    filled: Ledger, path: Path, table: str, change: str
) -> None:
    before = contents(filled)
    with closing(sqlite3.connect(path)) as connection:
        (column,) = connection.execute("SELECT name FROM pragma_table_info(?) LIMIT 1", (table,)).fetchone()
        with pytest.raises(sqlite3.IntegrityError, match=f"{table} are only ever added to"):
            connection.execute(change.format(table, column))

    assert contents(filled) == before


def test_a_ledger_that_was_begun_without_triggers_is_continued(filled: Ledger, path: Path) -> None:
    before = contents(filled)
    filled.close()
    changed(path)

    with Ledger.open(path, SETTINGS) as ledger:
        fill(ledger)
        assert contents(ledger) == before


def changed(path: Path, *changes: str) -> None:
    """Changes what must not be changed."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        for change in changes:
            connection.execute(change)


def test_a_ledger_of_another_version_is_refused(path: Path) -> None:
    Ledger.open(path, SETTINGS).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()

    with pytest.raises(LedgerError, match="schema version 99; this version of pts reads 2"):
        Ledger.open(path, SETTINGS)


def test_an_empty_file_is_begun(path: Path) -> None:
    path.touch()

    with Ledger.open(path, SETTINGS) as ledger:
        assert ledger.settings() == SETTINGS


def test_folders_above_are_made(tmp_path: Path) -> None:
    Ledger.open(tmp_path / "runs" / "first" / "run.ledger", SETTINGS).close()


def test_a_place_that_can_not_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(LedgerError, match="can't be made"):
        Ledger.open(tmp_path / "file" / "run.ledger", SETTINGS)


def test_there_must_be_a_ledger_to_read(path: Path) -> None:
    with pytest.raises(LedgerError, match="there is no such ledger"):
        Ledger.read(path)


def test_a_ledger_is_read_while_it_is_written(filled: Ledger, path: Path) -> None:
    with Ledger.read(path) as reader:
        filled.add_rollouts([rollout(1)])

        assert reader.rollouts_for("c1") == [ROLLOUT, rollout(1)]


def test_a_second_writer_is_refused(ledger: Ledger, path: Path) -> None:
    with pytest.raises(LedgerLockedError, match=f"run.ledger is in use by process {os.getpid()}$"):
        Ledger.open(path, SETTINGS)


def test_asking_who_writes_keeps_no_writer_out(path: Path) -> None:
    code = f"""
from pathlib import Path
from steering_pts.ledger.lock import lock_holder
print("asking", flush=True)
while True:
    lock_holder(Path({str(path)!r}))
"""
    WriterLock(path).release()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as asking:
        assert asking.stdout is not None
        asking.stdout.readline()
        try:
            for _ in range(1000):
                WriterLock(path).release()
        finally:
            asking.kill()


def test_a_lock_is_held_although_a_full_disk_has_no_room_for_its_holder(path: Path) -> None:
    code = f"""
import resource
from pathlib import Path
from steering_pts.errors import LedgerLockedError
from steering_pts.ledger.lock import WriterLock, lock_holder
path = Path({str(path)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
lock = WriterLock(path)
print(lock_holder(path))
try:
    WriterLock(path)
except LedgerLockedError as error:
    print(error)
lock.release()
print(lock_holder(path))
"""
    printed = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)

    assert printed.stdout == f"0\n{path} is in use by another process\nNone\n"


def test_a_disk_without_locks_is_a_clear_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)

    with pytest.raises(LedgerError, match=r"run\.ledger can't be locked: No locks available"):
        Ledger.open(path, SETTINGS)


def test_closing_lets_the_next_writer_in(path: Path) -> None:
    first = Ledger.open(path, SETTINGS)
    first.close()
    first.close()

    Ledger.open(path, SETTINGS).close()


def start_writer(path: Path) -> subprocess.Popen[str]:
    """A process that adds rollouts, eight at a time, and says so, until it is killed."""
    code = f"""
import itertools
from pathlib import Path
from steering_pts.data import Problem
from steering_pts.ledger import *
from steering_pts.oracles import Verdict
ledger = Ledger.open(Path({str(path)!r}), {SETTINGS!r})
ledger.add_problems([Problem("p1", "Q", "A", {{}})])
ledger.add_completions([CompletionRecord("c1", "p1", 0, 0, (1,), (2,), Verdict.CORRECT, "A", "stop")])
for batch in itertools.count():
    keys = [RolloutKey("c1", 0, "on_path", "explore", 8 * batch + i) for i in range(8)]
    ledger.add_rollouts([RolloutRecord(k, 0, tuple(range(500)), Verdict.CORRECT, None, 500) for k in keys])
    print(batch, flush=True)
"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_another_process_that_writes_is_named(path: Path) -> None:
    with start_writer(path) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        try:
            with pytest.raises(LedgerLockedError) as error:
                Ledger.open(path, SETTINGS)
            assert error.value.process == writer.pid
            assert str(error.value) == f"{path} is in use by process {writer.pid}"
        finally:
            writer.kill()


@pytest.mark.parametrize("batches", [1, 20, 100])
def test_a_killed_writer_loses_no_batch_that_it_had_added(path: Path, batches: int) -> None:
    with start_writer(path) as writer:
        assert writer.stdout is not None
        for _ in range(batches):
            last = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        printed = [last, *map(int, writer.stdout.read().split())]

    with Ledger.read(path) as reader:
        read = len(reader.rollouts_for("c1"))
    with Ledger.open(path, SETTINGS) as ledger:
        found = [record.key.index for record in ledger.rollouts_for("c1")]
        ledger.add_rollouts([rollout(0)])

    assert found == list(range(len(found)))
    assert len(found) == read
    assert len(found) % 8 == 0
    assert len(found) >= 8 * (printed[-1] + 1)


def test_a_full_disk_is_a_clear_error_and_adds_nothing(filled: Ledger) -> None:
    filled._connection.execute("PRAGMA max_page_count = 20")
    many = [replace(rollout(index), ids=tuple(range(1000))) for index in range(1, 100)]

    with pytest.raises(LedgerError, match=r"run\.ledger: database or disk is full"):
        filled.add_rollouts(many)

    assert filled.rollouts_for("c1") == [ROLLOUT]
    filled._connection.execute("PRAGMA max_page_count = 1000000")
    filled.add_rollouts(many)
    assert len(filled.rollouts_for("c1")) == 100


def test_a_disk_that_takes_no_more_bytes_is_a_clear_error(path: Path) -> None:
    code = f"""
import resource
from pathlib import Path
from steering_pts.data import Problem
from steering_pts.errors import LedgerError
from steering_pts.ledger import Ledger
ledger = Ledger.open(Path({str(path)!r}), {{}})
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    ledger.add_problems([Problem(str(i), "Q" * 1000, "A", {{}}) for i in range(1000)])
except LedgerError as error:
    print(error)
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert printed.stdout.startswith(f"{path}: ")
    with Ledger.open(path, {}) as ledger:
        assert ledger.problems() == []


def test_use_after_closing_is_a_clear_error(path: Path) -> None:
    ledger = Ledger.open(path, SETTINGS)
    ledger.close()

    with pytest.raises(LedgerError, match="closed database"):
        ledger.problems()


def test_the_summary_counts_everything(filled: Ledger) -> None:
    filled.add_rollouts([replace(rollout(1, stage="confirm"), verdict=Verdict.CENSORED, tokens=40)])

    summary = filled.summary()

    assert (summary.problems, summary.scored, summary.nominees) == (2, 1, 1)
    assert (summary.confirmations, summary.pivots) == (1, 1)
    assert summary.completions == {Verdict.CORRECT: 1, Verdict.INCORRECT: 0, Verdict.CENSORED: 0}
    assert summary.rollouts == {Verdict.CORRECT: 0, Verdict.INCORRECT: 1, Verdict.CENSORED: 1}
    assert summary.stages == {"confirm": 1, "explore": 1}
    assert (summary.completion_tokens, summary.rollout_tokens) == (3, 42)


def test_the_summary_of_a_new_ledger_is_all_zero(ledger: Ledger) -> None:
    summary = ledger.summary()

    assert (summary.problems, summary.completion_tokens, summary.rollout_tokens) == (0, 0, 0)
    assert summary.completions == dict.fromkeys(Verdict, 0)


def test_an_exported_pivot_says_all_that_is_known_of_it(filled: Ledger, tmp_path: Path) -> None:
    filled.export_pivots_jsonl(tmp_path / "pivots.jsonl", decode)

    (line,) = (tmp_path / "pivots.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "schema": "steering.pivot/1",
        "problem_id": "p1",
        "completion_id": "c1",
        "question": "1 + 2 * 3?",
        "answer": "7",
        "prompt_ids": [1, 2],
        "prefix_ids": [5],
        "prefix": "<5>",
        "position": 1,
        "ids": [6],
        "token_id": 6,
        "token": "<6>",
        "probability": 0.4,
        "delta": 0.5,
        "low": 0.3,
        "high": 0.6,
        "p_value": 1e-4,
        "q_value": 2e-4,
        "confirmation": {
            "leave_probability": 0.9,
            "on_path_successes": 20,
            "on_path_rollouts": 24,
            "on_path_censored": 3,
            "alternative_successes": 2,
            "alternative_rollouts": 23,
            "alternative_censored": 1,
        },
        "chosen_id": 6,
        "chosen_ids": [6],
        "chosen": "<6>",
        "rejected_id": 9,
        "rejected_ids": [9, 8],
        "rejected": "<9><8>",
        "alternatives": [
            {
                "ids": [9, 8],
                "token_id": 9,
                "token": "<9><8>",
                "successes": 1,
                "failures": 20,
                "success_rate": 1 / 21,
            },
            {
                "ids": [10],
                "token_id": 10,
                "token": "<10>",
                "successes": 0,
                "failures": 0,
                "success_rate": None,
            },
        ],
    }


def test_the_order_of_work_does_not_change_an_exported_byte(tmp_path: Path) -> None:
    completions = [replace(COMPLETION, id=f"c{index}", index=index) for index in range(12)]
    pivots = [replace(PIVOT, completion_id=completion.id) for completion in completions]
    exports = []
    for name, step in (("one", 1), ("other", -1)):
        with Ledger.open(tmp_path / name, SETTINGS) as ledger:
            ledger.add_problems([PROBLEM])
            ledger.add_completions(completions[::step])
            ledger.write_pivots(pivots[::step])
            ledger.export_pivots_jsonl(tmp_path / "pivots.jsonl", decode)
        exports.append((tmp_path / "pivots.jsonl").read_bytes())

    assert exports[0] == exports[1]
    lines = exports[0].splitlines()
    assert [json.loads(line)["completion_id"] for line in lines] == [f"c{index}" for index in range(12)]


def test_an_export_that_fails_leaves_the_old_file_and_nothing_else(filled: Ledger, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "pivots.jsonl").write_text("old")

    def failing(ids: Sequence[int]) -> str:
        raise KeyError(ids[0])

    with pytest.raises(KeyError):
        filled.export_pivots_jsonl(folder / "pivots.jsonl", failing)

    assert [(file.name, file.read_text()) for file in folder.iterdir()] == [("pivots.jsonl", "old")]


def test_an_export_to_nowhere_is_a_clear_error(filled: Ledger, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"pivots\.jsonl can't be written: No such file or directory"):
        filled.export_pivots_jsonl(tmp_path / "nowhere" / "pivots.jsonl", decode)


def test_a_verdict_that_the_oracle_failed_to_give_is_told_from_one_that_it_could_not(filled: Ledger) -> None:
    filled.add_rollouts(
        [
            replace(rollout(1), verdict=Verdict.CENSORED, failed=True),
            replace(rollout(2), verdict=Verdict.CENSORED),
        ]
    )
    filled.add_completions([replace(COMPLETION, id="c2", index=1, verdict=Verdict.CENSORED, failed=True)])

    assert [record.failed for record in filled.rollouts_for("c1")] == [False, True, False]
    assert [record.failed for record in filled.completions()] == [False, True]
    assert filled.summary().oracle_failures == 2


def test_ten_thousand_rollouts_are_added_and_found(filled: Ledger) -> None:
    records = [replace(rollout(index), ids=tuple(range(60))) for index in range(1, 10_001)]
    for start in range(0, len(records), 100):
        filled.add_rollouts(records[start : start + 100])

    assert list(filled.find_rollouts(record.key for record in records).values()) == records
