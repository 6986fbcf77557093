"""predictions.parquet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, BinaryIO

from mineral_batch.errors import DataError
from mineral_batch.model.contract import ModelContract
from mineral_batch.results.rows import TableRow, extra_values
from mineral_batch.results.schema import SCHEMA_VERSION
from mineral_batch.system import pip_install
from mineral_batch.types import Failure

_ROWS_PER_GROUP = 4096


class Parquet:
    """Writes the rows of predictions.parquet in groups, so that memory does not grow with them."""

    def __init__(self, file: BinaryIO, contract: ModelContract, extra: Sequence[str] = ()) -> None:
        arrow, parquet = import_pyarrow()
        kinds = {
            "width": arrow.int32(),
            "height": arrow.int32(),
            **dict.fromkeys(("answer", "captured", "best", "second", "calibrated", "damaged"), arrow.string()),
        }
        names = [("path", arrow.string()), ("minerals", arrow.list_(arrow.string()))]
        names += [(name, kinds.get(name, arrow.float64())) for name in extra]
        names += [(label, arrow.float32()) for label in contract.labels]
        self._schema = arrow.schema(names, metadata={"mineral_batch.schema": str(SCHEMA_VERSION)})
        self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._arrow = arrow
        self._extra = extra
        self._contract = contract
        self._rows: list[list[Any]] = []

    def write(self, row: TableRow | Failure) -> None:
        """Append a row for a prediction."""
        if isinstance(row, Failure):
            return
        path = os.fsencode(row.result.path).decode("utf-8", "backslashreplace")
        self._rows.append([path, row.minerals, *extra_values(row, self._extra, self._contract), *row.values])
        if len(self._rows) == _ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        columns = zip(*self._rows, strict=True)
        arrays = [self._arrow.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._writer.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))
        self._rows.clear()

    def close(self) -> None:
        """Write the last rows and the footer, without which the file is not Parquet."""
        self._flush()
        self._writer.close()


def import_pyarrow() -> tuple[Any, Any]:
    """Import the modules `pyarrow` and `pyarrow.parquet`.

    Raises:
        DataError: if the package is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"Parquet needs pyarrow: {pip_install('parquet')}") from None
    return pyarrow, pyarrow.parquet
