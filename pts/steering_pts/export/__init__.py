"""What a run holds, as tables for other programs: JSON lines, CSV, Parquet."""

from steering_pts.export.columns import Column, RowTable
from steering_pts.export.tables import TABLES
from steering_pts.export.text import with_text
from steering_pts.export.writers import FORMATS, lines_of, write_parquet

__all__ = ["FORMATS", "TABLES", "Column", "RowTable", "lines_of", "with_text", "write_parquet"]
