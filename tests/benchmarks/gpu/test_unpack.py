"""What was brought along: pieces, wheels, sources."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from typing import TYPE_CHECKING

import pytest

from mineral_bench.gpu import packages
from mineral_bench.gpu.record import read_record
from mineral_bench.gpu.stage import run_stage
from mineral_bench.gpu.stages import tensorrt
from mineral_bench.gpu.state import has_files_of

from .helpers import make_settings, write_wheel

if TYPE_CHECKING:
    from pathlib import Path


def test_pieces_are_put_together_and_what_is_broken_is_named(tmp_path: Path) -> None:
    wheels, out = tmp_path / "wheels", tmp_path / "out"
    (tmp_path / "brought").mkdir()
    (tmp_path / "brought" / "brought_along.py").write_text("HERE = True\n" + "# " + os.urandom(2000).hex())
    wheels.mkdir()
    with tarfile.open(tmp_path / "brought.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "brought" / "brought_along.py", "brought_along.py")
    whole = (tmp_path / "brought.tar.xz").read_bytes()
    for index, start in enumerate(range(0, len(whole), 800)):
        (wheels / f"brought.tar.xz.part{index:02}").write_bytes(whole[start : start + 800])
    (wheels / "broken.tar.xz").write_bytes(b"nothing of the kind")
    (wheels / "broken.whl").write_bytes(b"no zip")
    (wheels / "paper-int8.onnx.part00").write_bytes(b"a gr")
    (wheels / "paper-int8.onnx.part01").write_bytes(b"aph")
    given = make_settings(tmp_path, wheels=wheels)
    given.out.mkdir()
    assert run_stage("install", given) == 1
    found = read_record(out, "install")
    assert found["installed"] == ["brought.tar.xz", "paper-int8.onnx"]
    assert found["failed"].keys() == {"broken.tar.xz", "broken.whl"}
    assert found["error"].startswith("2 failed: broken.whl: File is not a zip file; broken.tar.xz: ")
    assert "HERE = True" in (out / "site" / "brought_along.py").read_text()
    target = given.model("int8")
    target.parent.mkdir(parents=True)
    assert tensorrt._int8(given, target).startswith("brought along")
    assert target.read_bytes() == b"a graph"


def test_what_was_unpacked_is_unpacked_again_where_it_is_gone(tmp_path: Path) -> None:
    """Also by a stage that was not done before: what was broken keeps it so."""
    wheels, out = tmp_path / "wheels", tmp_path / "out"
    wheels.mkdir()
    write_wheel(wheels / "one-1-py3-none-any.whl", {"one.py": "ONE = 1"})
    (wheels / "two-1-py3-none-any.whl").write_bytes(b"no zip")
    given = make_settings(tmp_path, wheels=wheels)
    given.out.mkdir()
    for _ in range(2):
        assert run_stage("install", given) == 1
        assert (given.site / "one.py").is_file()
        shutil.rmtree(given.site)
    write_wheel(wheels / "two-1-py3-none-any.whl", {"two.py": "TWO = 2"})
    assert run_stage("install", given) == 0
    assert {path.name for path in given.site.iterdir()} == {"one.py", "two.py"}
    assert read_record(out, "install")["installed"] == ["one-1-py3-none-any.whl", "two-1-py3-none-any.whl"]


def test_a_newer_wheel_leaves_nothing_of_the_older_one(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    shared = {"nvidia/other/kept.py": "", "other-1.dist-info/RECORD": "nvidia/other/kept.py,,\n"}
    write_wheel(wheels / "a_other-1-py3-none-any.whl", shared)
    old = ("nvidia/x/gone.py", "nvidia/x/stays.py", "x_libs/lib.so", "X_y-1.data/purelib/moved.py", "../../bin/x")
    record = "".join(f'"{name}",sha256=0,1\n' for name in old)
    contents = dict.fromkeys(old[:-1], "old") | {
        "X_y-1.dist-info/RECORD": f"\n{record}",
        "X_y-1.dist-info/METADATA": "",
    }
    write_wheel(wheels / "x_y-1-py3-none-any.whl", contents)
    given = make_settings(tmp_path, wheels=wheels)
    given.out.mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "x").write_text("of the machine")
    (given.out / "unpacking").mkdir()
    (given.out / "unpacking" / "half.so").write_text("of an attempt that was killed")
    assert run_stage("install", given) == 0
    assert {path.name for path in given.out.iterdir()} == {"site", "stages"}
    assert (given.site / "moved.py").read_text() == "old"
    compiled = given.site / "x_libs" / "__pycache__" / "lib.cpython-312.pyc"
    compiled.parent.mkdir()
    compiled.touch()
    (wheels / "x_y-1-py3-none-any.whl").unlink()
    with tarfile.open(wheels / "newer.tar.xz", "w:xz") as archive:
        for name, text in {"./nvidia/x/stays.py": "new", "./x.y-2.dist-info/RECORD": "nvidia/x/stays.py,,\n"}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    assert run_stage("install", given) == 0
    found = sorted(str(path.relative_to(given.site)) for path in given.site.rglob("*") if path.is_file())
    others = ["nvidia/other/kept.py", "nvidia/x/stays.py", "other-1.dist-info/RECORD", "x.y-2.dist-info/RECORD"]
    assert found == others
    assert not (given.site / "x_libs").exists(), "an empty folder is a package still"
    assert (given.site / "nvidia" / "x" / "stays.py").read_text() == "new"
    assert (tmp_path / "bin" / "x").read_text() == "of the machine"


def test_wheels_are_merged_folder_by_folder(tmp_path: Path) -> None:
    """Many of NVIDIA's have their modules in the same one; `pip install --target` drops it with each new wheel."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    contents = {
        "one": {"nvidia/one/lib/libone.so": "1", "one.dist-info/METADATA": "Name: one"},
        "two": {"nvidia/two/lib/libtwo.so": "2", "two.data/platlib/two.py": "IS = 2", "two.data/scripts/run": "#!"},
    }
    for name, files in contents.items():
        write_wheel(wheels / f"{name}-1-py3-none-any.whl", files)
    given = make_settings(tmp_path, wheels=wheels)
    given.out.mkdir()
    assert run_stage("install", given) == 0
    found = sorted(str(path.relative_to(given.site)) for path in given.site.rglob("*") if path.is_file())
    assert found == ["nvidia/one/lib/libone.so", "nvidia/two/lib/libtwo.so", "one.dist-info/METADATA", "two.py"]
    libraries = [str(given.site / "nvidia" / name / "lib") for name in ("one", "two")]
    assert packages.library_folders([str(given.site), "", str(given.site)]) == libraries


def test_a_package_brought_along_as_source_is_built_and_merged(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="what builds it")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    files = {
        "pyproject.toml": '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "of-source"\nversion = "1"\n'
        '[tool.hatch.build.targets.wheel]\nonly-include = ["nvidia"]\n',
        "nvidia/of_source.py": "HERE = True",
        "PKG-INFO": "Metadata-Version: 2.1\nName: of-source\nVersion: 1\n",
    }
    for name, text in files.items():
        path = tmp_path / "of_source-1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with tarfile.open(wheels / "of_source-1.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "of_source-1", "of_source-1")
    given = make_settings(tmp_path, wheels=wheels)
    (given.site / "nvidia").mkdir(parents=True)
    (given.site / "nvidia" / "other.py").write_text("")
    assert run_stage("pycuda", given) == 0, read_record(given.out, "pycuda")
    assert {path.name for path in (given.site / "nvidia").glob("*.py")} == {"of_source.py", "other.py"}
    assert has_files_of(given, "pycuda")
    shutil.rmtree(given.site)
    assert not has_files_of(given, "pycuda")
    assert run_stage("pycuda", given) == 0
    assert (given.site / "nvidia" / "of_source.py").is_file(), "compiled again"
