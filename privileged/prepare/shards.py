"""Rows to a parquet file, a row group at a time, so that memory holds a group and not a shard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from privileged.schema import features

ROWS_IN_GROUP = 100
BYTES_IN_GROUP = 32 * 1024 * 1024


class RowGroupWriter:
    """Writes one parquet file of any schema. The file is whole once the writer closed without an error."""

    def __init__(self, path: Path, schema: Any):
        import pyarrow.parquet as pq

        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema)
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def write(self, row: dict[str, Any], images: Iterable[Mapping[str, Any]]) -> None:
        """Add a row; the images are those that it holds, encoded."""
        self._rows.append(row)
        self._bytes += sum(len(image["bytes"]) for image in images)
        if len(self._rows) >= ROWS_IN_GROUP or self._bytes >= BYTES_IN_GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._bytes = [], 0


class ShardWriter(RowGroupWriter):
    """Writes a shard of a dataset, which datasets reads with the Image feature."""

    def __init__(self, path: Path):
        super().__init__(path, features().arrow_schema)

    def add(self, row: dict[str, Any]) -> None:
        self.write(row, row["images"])
