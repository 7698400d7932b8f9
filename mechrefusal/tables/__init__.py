"""Every table that the project writes: its columns, their dtypes and their meaning, and how it is written and read.

In a notebook:

    import mechrefusal as mr

    mr.tables.describe("carrier")                                 # column, dtype, meaning
    mr.tables.read("carrier", run.measurements())                 # a pandas frame of exactly these dtypes
"""

from mechrefusal.tables.reading import describe, frame, read, write
from mechrefusal.tables.schema import ACROSS, CHECKPOINT, DURABILITY, PER_CHECKPOINT, TABLES, columns

__all__ = [
    "ACROSS",
    "CHECKPOINT",
    "DURABILITY",
    "PER_CHECKPOINT",
    "TABLES",
    "columns",
    "describe",
    "frame",
    "read",
    "write",
]
