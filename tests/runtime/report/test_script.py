"""The page's script: its modules by Node's test runner, their types by TypeScript, and how they are joined."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest

from mineral_batch.report.script import bundle

HERE = Path(__file__).parent / "js"
MODULES = sorted(Path(str(resources.files("mineral_batch.report"))).glob("assets/js/*.mjs"))
NODE = shutil.which("node")
COMPILER = HERE / "node_modules/.bin/tsc"

needs_node = pytest.mark.skipif(NODE is None, reason="needs node on the PATH")
needs_typescript = pytest.mark.skipif(
    NODE is None or not COMPILER.exists(), reason="needs TypeScript: npm install --prefix tests/runtime/report/js"
)


@needs_node
@pytest.mark.parametrize("name", ["table", "select"])
def test_modules_in_node(name: str, tmp_path: Path) -> None:
    for path in (*MODULES, *HERE.glob("*.mjs")):
        shutil.copy(path, tmp_path)
    done = subprocess.run(
        [str(NODE), "--test", f"{name}.test.mjs"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search(r"^# pass 0$", done.stdout, re.MULTILINE), "no test was run"


@needs_typescript
@pytest.mark.slow
def test_types_of_the_modules(tmp_path: Path) -> None:
    assert _errors(HERE, HERE / "tsconfig.json") == ""


@needs_typescript
@pytest.mark.slow
def test_a_wrong_type_is_found(tmp_path: Path) -> None:
    """Otherwise the check above would pass whatever the modules say."""
    for path in MODULES:
        text = path.read_text("utf-8")
        (tmp_path / path.name).write_text(
            text.replace("percent(table.score(item, label))", "percent(item.score)"), "utf-8"
        )
    settings = (HERE / "tsconfig.json").read_text().replace("../../../../runtime/mineral_batch/report/assets/js/", "")
    (tmp_path / "tsconfig.json").write_text(settings)
    assert "Property 'score' does not exist on type 'number'" in _errors(tmp_path, tmp_path / "tsconfig.json")


def _errors(folder: Path, settings: Path) -> str:
    return _run(folder, str(COMPILER), "--pretty", "false", "--project", str(settings)).stdout


def _run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=600)


def test_bundle_has_every_module_once_behind_its_imports() -> None:
    order = re.findall(r"^// (\w+\.mjs)$", bundle(), re.MULTILINE)
    assert sorted(order) == [path.name for path in MODULES]
    for path in MODULES:
        for imported in re.findall(r'from "\./(\w+\.mjs)"', path.read_text("utf-8")):
            assert order.index(imported) < order.index(path.name)


def test_modules_share_no_names() -> None:
    """In the bundle they are one scope."""
    names = [
        name
        for path in MODULES
        for name in re.findall(
            r"^(?:export )?(?:const|let|function|class) (?:\{[^}]*\}|(\w+))", path.read_text("utf-8"), re.MULTILINE
        )
    ]
    assert len(names) > 40
    assert [name for name, count in Counter(names).items() if count > 1] == []


def test_bundle_has_no_module_syntax() -> None:
    assert not re.search(r"^\s*(import|export)\b", bundle(), re.MULTILINE)


def test_modules_write_no_markup() -> None:
    """What comes from outside is set as text; these would read it as markup or as code."""
    for path in MODULES:
        forbidden = re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", path.read_text()
        )
        assert forbidden == [], path.name


@needs_node
def test_bundle_is_a_script(tmp_path: Path) -> None:
    (tmp_path / "bundle.cjs").write_text(bundle(), "utf-8")
    done = subprocess.run(
        [str(NODE), "--check", "bundle.cjs"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
