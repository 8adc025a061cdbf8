"""Writing and reading the Parquet tables of artifacts, with their schema enforced both ways."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gha_core.artifacts.schemas import VERSION
from gha_core.errors import ArtifactError

Row = Mapping[str, Any]


class TableWriter:
    """Streams rows to a Parquet file; rows must arrive sorted by the schema's key, without repeats.

    Rows of one timestep go to one row group, so that readers can stream frame by frame with bounded
    memory. Use as a context manager; the file is complete only after a clean exit.

    Raises:
        ArtifactError: a row does not fit the schema, is out of order, or repeats a key.
    """

    def __init__(self, path: Path, schema: pa.Schema, max_group_rows: int = 512) -> None:
        self.path, self.schema = Path(path), schema
        self._key = _key_columns(schema)
        self._group_key = [name for name in self._key if name != "camera"]
        self._max_rows = max_group_rows
        # Only tables with image blobs profit from one group per timestep; small rows are batched.
        self._by_timestep = any(pa.types.is_binary(field.type) for field in schema)
        self._rows: list[Row] = []
        self._last: tuple[Any, ...] | None = None
        # Encoded images do not compress further.
        compression = {
            name: "NONE" if pa.types.is_binary(schema.field(name).type) else "ZSTD"
            for name in schema.names
        }
        self._writer = pq.ParquetWriter(self.path, schema, compression=compression)
        self.count = 0

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            self._writer.close()

    def write(self, row: Row) -> None:
        key = tuple(row[name] for name in self._key)
        if self._last is not None and key <= self._last:
            raise ArtifactError(
                f"{self.path.name}: row {key} arrived after {self._last}; rows must be sorted by "
                f"({', '.join(self._key)}) and unique. This is a bug in the stage that wrote it."
            )
        if self._rows and (
            len(self._rows) >= self._max_rows
            or (self._by_timestep and self._group(row) != self._group(self._rows[-1]))
        ):
            self._flush()
        self._last = key
        self._rows.append(row)
        self.count += 1

    def _group(self, row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in self._group_key)

    def _flush(self) -> None:
        if not self._rows:
            return
        try:
            unknown = set(self._rows[0]) - set(self.schema.names)
            if unknown:
                raise pa.ArrowInvalid(f"unknown columns {sorted(unknown)}")
            table = pa.Table.from_pylist([dict(row) for row in self._rows], schema=self.schema)
            table.validate(full=True)
            for field in self.schema:
                if not field.nullable and table.column(field.name).null_count:
                    raise pa.ArrowInvalid(f"column {field.name} has missing values")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ArtifactError(
                f"{self.path.name}: a row does not fit its schema: {error}"
            ) from None
        self._writer.write_table(table)
        self._rows = []


def write_table(path: Path, schema: pa.Schema, rows: Iterable[Row]) -> int:
    """Write ``rows`` (any order) as one table sorted by the key. Returns the number of rows."""
    key = _key_columns(schema)
    with TableWriter(path, schema) as writer:
        for row in sorted(rows, key=lambda row: tuple(row[name] for name in key)):
            writer.write(row)
    return writer.count


def read_table(path: Path, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """The whole table (or some columns of it) after checking it against ``schema``."""
    with open_table(path, schema) as file:
        return file.read(columns=columns)


def read_rows(
    path: Path, schema: pa.Schema, columns: list[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Stream the rows as dicts, one row group in memory at a time, in key order."""
    with open_table(path, schema) as file:
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group, columns=columns).to_pylist()


def open_table(path: Path, schema: pa.Schema) -> pq.ParquetFile:
    """The open file after checking it against ``schema``; close it, or use it as a context manager.

    Raises:
        ArtifactError: it is missing, not Parquet, or of another schema or version.
    """
    path = Path(path)
    try:
        file = pq.ParquetFile(path, memory_map=True)
    except FileNotFoundError:
        raise ArtifactError(
            f"{path} does not exist. Run the stage that writes it: gha run SUBJECT."
        ) from None
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(
            f"{path} is not a readable Parquet table ({error}). Delete it and run its stage again."
        ) from None
    found, wanted = file.schema_arrow, schema
    meta = {key.decode(): value.decode() for key, value in (found.metadata or {}).items()}
    version = meta.get("gha.version")
    if not found.equals(wanted, check_metadata=False) or version != str(VERSION):
        file.close()
        raise ArtifactError(
            f"{path} is of schema version {version}, this code reads version {VERSION} "
            f"({wanted.metadata[b'gha.table'].decode()}). Run its stage again."
        )
    return file


def _key_columns(schema: pa.Schema) -> list[str]:
    return schema.metadata[b"gha.key"].decode().split(",")
