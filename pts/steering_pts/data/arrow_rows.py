"""Rows of Arrow tables: of a Parquet file, and of what the library `datasets` reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from steering_pts.data.files import check_parquet
from steering_pts.data.rows import Row
from steering_pts.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_ONCE: Final = 1000


def parquet_rows(path: Path) -> Generator[Row]:
    """The rows of a Parquet file, read a thousand at a time.

    Raises:
        DataError: it can't be read, is damaged, or names a column twice.
    """
    # Takes a part of a second; text files need nothing of it.
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    check_parquet(path)
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                raise DataError(str(path), [f"it names the column {name!r} twice" for name in twice])
            yield from table_rows(file.iter_batches(batch_size=ROWS_AT_ONCE))
    except (pa.ArrowException, OSError) as error:
        raise DataError(str(path), [f"it can't be read: {str(error).splitlines()[0]}"]) from error


def table_rows(tables: Iterable[pa.Table | pa.RecordBatch]) -> Generator[Row]:
    """The rows of tables, numbered through; a null is None."""
    number = 0
    for table in tables:
        names = table.schema.names
        columns = [_values(column) for column in table.columns]
        for cells in zip(*columns, strict=True):
            number += 1
            yield Row(number, dict(zip(names, cells, strict=True)))


def _values(column: Any) -> list[object]:
    import pyarrow as pa  # noqa: PLC0415

    values: list[object] = column.to_pylist()
    if pa.types.is_float32(column.type) or pa.types.is_float16(column.type):
        # 0.1 of 32 bits is 0.1 in every other format, not 0.10000000149011612.
        dtype = column.type.to_pandas_dtype()
        return [None if value is None else float(str(dtype(value))) for value in values]
    return values
