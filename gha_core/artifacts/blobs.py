"""Images of a table one at a time, in any order, without holding them all."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from threading import Lock

import pyarrow as pa
import pyarrow.parquet as pq

from gha_core.artifacts.tables import open_table

Key = tuple[str, int, str]
"""Sequence, timestep, camera."""


class Blobs:
    """Random access to one binary column by view key, holding a few row groups at a time.

    Any thread may read.
    """

    def __init__(self, path: Path, schema: pa.Schema, column: str, groups: int = 16) -> None:
        self._file: pq.ParquetFile = open_table(path, schema)
        self._column, self._capacity = column, groups
        self._groups: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._turn = Lock()
        self._places: dict[Key, tuple[int, int]] = {}
        for group in range(self._file.num_row_groups):
            keys = self._file.read_row_group(group, columns=["sequence", "timestep", "camera"])
            for index, row in enumerate(keys.to_pylist()):
                self._places[row["sequence"], row["timestep"], row["camera"]] = (group, index)

    def __contains__(self, key: Key) -> bool:
        return key in self._places

    def __getitem__(self, key: Key) -> bytes:
        group, index = self._places[key]
        with self._turn:
            return self._group(group)[index].as_py()

    def _group(self, group: int) -> pa.ChunkedArray:
        if group in self._groups:
            self._groups.move_to_end(group)
        else:
            table = self._file.read_row_group(group, columns=[self._column])
            self._groups[group] = table.column(0)
            if len(self._groups) > self._capacity:
                self._groups.popitem(last=False)
        return self._groups[group]
