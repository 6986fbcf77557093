"""Which columns of a Parquet file are images, what its rows are called, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from mineral_batch.images import parquet
from mineral_batch.images.discover import find_sources
from mineral_batch.types import Failure

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(seed: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), np.uint8)
    PILImage.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


A, B = picture(1), picture(2)
ROWS = [{"bytes": A, "path": "d/a.png"}, {"bytes": B, "path": "d/b.png"}]
FRONT, BACK = pa.array(ROWS[:1], IMAGE), pa.array(ROWS[1:], IMAGE)
EMPTY = {"bytes": b"", "path": "e.png"}
NAMED = "the row names a file instead of holding an image: list the files with --list"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"image": pa.array(ROWS, IMAGE), "label": [0, 1]}, {"0/a.png": A, "1/b.png": B}),
        ({"x": [1, 2], "jpg": pa.array([A, B], pa.large_binary())}, {"0": A, "1": B}),
        ({"thumbnail": [B], "image": [A]}, {"0": A}),
        ({"md5": [b"0123456789abcdef"], "front": [A], "back": [B]}, {"0/front": A, "0/back": B}),
        ({"front": FRONT, "back": BACK}, {"0/front/a.png": A, "0/back/b.png": B}),
        ({"images": pa.array([ROWS, []], pa.list_(IMAGE))}, {"0/0/a.png": A, "0/1/b.png": B}),
        ({"image": pa.array([A, A]).dictionary_encode()}, {"0": A, "1": A}),
        ({"image": pa.array([None, EMPTY], IMAGE)}, {"0": "the row has no image", "1/e.png": "the file is empty"}),
        ({"image": pa.array([{"bytes": None, "path": "d/a.png"}], IMAGE)}, {"0/a.png": NAMED}),
    ],
)  # fmt: skip
def test_images_of_a_table(tmp_path: Path, columns: dict[str, Any], expected: dict[str, bytes | str]) -> None:
    file = tmp_path / "x.parquet"
    pq.write_table(pa.table(columns), file)
    found = {}
    for one in find_sources([file]):
        name = (one.path if isinstance(one, Failure) else one.name).removeprefix(f"{file}/")
        found[name] = one.reason if isinstance(one, Failure) else one.read()
    assert found == expected


@pytest.mark.parametrize("columns", [{"file_name": ["a.png"], "n": [1]}, {"sample": [{"image": ROWS[0]}]}])
def test_a_table_without_images_names_its_columns(tmp_path: Path, columns: dict[str, Any]) -> None:
    file = tmp_path / "x.parquet"
    pq.write_table(pa.table(columns), file)
    (failure,) = find_sources([file])
    assert isinstance(failure, Failure)
    names = ", ".join(columns)
    assert failure.reason == f"no column of images; its columns: {names} (if one names files, use --list)"


def test_a_row_group_beyond_the_memory_is_a_failure_and_the_others_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.parquet"
    schema = pa.schema([("image", pa.binary())])
    with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
        for rows in ([A], [A + bytes(50_000), B], [B]):
            writer.write_table(pa.table({"image": rows}, schema))
    monkeypatch.setattr(parquet, "available_memory", lambda: 100_000)
    first, failure, last = find_sources([file])
    assert (first.name, last.name) == (f"{file}/0", f"{file}/3")  # type: ignore[union-attr]
    assert isinstance(failure, Failure)
    assert failure.path == f"{file}/1-2"
    assert "rewrite the table with smaller row groups" in failure.reason
