"""The wheel holds the packages as they are tracked, the starter model if there is one, and nothing else."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("runtime", "train", "export", "benchmarks")
MODELS = "mineral_batch/model/starter/"
LIMIT = 30_000_000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("build", "hatchling"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}: pip install build hatchling")
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def content(wheel: Path) -> dict[str, int]:
    """Name -> bytes of every file in the wheel, without its own records."""
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.file_size for entry in archive.infolist() if ".dist-info/" not in entry.filename}


def tracked() -> set[str]:
    """The files of the four packages that git knows, by their names in a wheel."""
    try:
        done = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *ROOMS],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs a git checkout: {error}")
    names = (name.decode() for name in done.stdout.split(b"\0") if name)
    return {name.partition("/")[2] for name in names if (ROOT / name).is_file() and "/mineral_" in name}


def test_it_holds_what_is_tracked_and_nothing_else(content: dict[str, int]) -> None:
    assert set(content) == tracked()


def test_every_package_is_typed(content: dict[str, int]) -> None:
    for package in ("mineral_batch", "mineral_train", "mineral_export", "mineral_bench"):
        assert f"{package}/py.typed" in content


def test_the_starter_model_ships_with_its_card_and_stays_small(content: dict[str, int]) -> None:
    models = {name for name in content if name.endswith(".onnx")}
    has_starter = (ROOT / "runtime" / MODELS / "starter.onnx").exists()
    assert models == ({MODELS + "starter.onnx"} if has_starter else set())
    assert has_starter == (MODELS + "starter.md" in content)
    assert sum(size for name, size in content.items() if name.startswith(MODELS)) < LIMIT


def test_the_commands_and_extras_are_declared(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        records = {Path(name).name: name for name in archive.namelist() if ".dist-info/" in name}
        commands = archive.read(records["entry_points.txt"]).decode()
        metadata = archive.read(records["METADATA"]).decode()
    for command in ("batch", "train", "export", "bench"):
        assert f"mineral-{command} = mineral_{command}.cli:main" in commands
    for extra in ("cpu", "gpu", "trt", "train", "export"):
        assert f"Provides-Extra: {extra}" in metadata
    needed = {line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line}
    names = {line.split()[1].split(">")[0] for line in needed}
    assert names == {"click", "jinja2", "numpy", "pillow", "simplejpeg", "tqdm"}


def test_the_reports_templates_script_and_map_are_inside(wheel: Path) -> None:
    report = ROOT / "runtime/mineral_batch/report"
    files = [path for kind in ("templates/*.html", "assets/js/*.mjs", "assets/*.*") for path in report.glob(kind)]
    assert len(files) > 15
    with zipfile.ZipFile(wheel) as archive:
        assert {path.relative_to(ROOT / "runtime").as_posix() for path in files} <= {*archive.namelist()}


def test_it_works_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    """Imported from the unpacked wheel, in a folder far from the checkout."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import mineral_batch; print(mineral_batch.__file__);"
        "from mineral_batch.cli import main; main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.startswith(str(tmp_path)), done.stderr
    assert "predict" in done.stdout
