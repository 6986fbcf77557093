"""What the documents show is what the program does: commands, figures, the set-up commands."""

from __future__ import annotations

import csv
import os
import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from PIL import Image

import mineral_batch.cli
import mineral_bench.cli
import mineral_export.cli
import mineral_train.cli
from mineral_batch.model.onnx_file import read_contract
from mineral_batch.model.starter import starter_card, starter_path

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("*/README.md")), ROOT / "CONTRIBUTING.md", starter_card()]
PROGRAMS = {
    "mineral-batch": mineral_batch.cli.main,
    "mineral-train": mineral_train.cli.main,
    "mineral-export": mineral_export.cli.main,
    "mineral-bench": mineral_bench.cli.main,
}


def blocks(text: str) -> list[str]:
    """The contents of all fenced blocks."""
    return re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def marked(name: str) -> str:
    """The fenced block that follows `<!-- name -->` in the README."""
    text = (ROOT / "README.md").read_text("utf-8")
    return blocks(text.split(f"<!-- {name} -->", 1)[1])[0].strip()


def typed(block: str) -> list[str]:
    """The lines of a fenced block that are typed: those behind a prompt where there are prompts, else all."""
    lines = block.replace("\\\n", " ").splitlines()
    prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return prompted or lines


def commands(document: Path) -> list[str]:
    """Every call of one of our programs in a document's fenced blocks, as it would be typed."""
    lines = [line for block in blocks(document.read_text("utf-8")) for line in typed(block)]
    parts = (part.strip() for line in lines for part in re.split(r"&&|\|", line))
    return [part for part in parts if part and Path(part.split()[0]).name in PROGRAMS]


ALL_COMMANDS = [(document, command) for document in DOCUMENTS if document.exists() for command in commands(document)]


def test_the_documents_show_commands() -> None:
    shown = {Path(command.split()[0]).name for _, command in ALL_COMMANDS}
    assert shown >= {"mineral-batch", "mineral-train", "mineral-export"}


@pytest.mark.parametrize(("document", "command"), ALL_COMMANDS, ids=lambda value: str(value)[-60:])
def test_every_command_shown_is_understood(document: Path, command: str) -> None:
    """Parsed by the program itself, not run: an option that was renamed fails here."""
    program, *words = shlex.split(command, comments=True)
    group = PROGRAMS[Path(program).name]
    context = click.Context(group, info_name=program)
    name, found, rest = group.resolve_command(context, [word for word in words if word != "..."])
    assert found is not None, f"{document.name}: no command {name}"
    found.make_context(name, rest, parent=context, resilient_parsing=False)


def test_the_two_set_up_commands_are_there() -> None:
    assert "mineral-batch predict" in marked("predict")
    assert "pytest" in marked("test")
    for name in ("predict", "test"):
        assert len(marked(name).splitlines()) == 1, "one command each"


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A few real photographs where there are any, else pictures made here."""
    real = Path(os.environ.get("MINERAL_PHOTOS", ROOT.parent / "shared" / "photos")) / "images"
    folder = tmp_path / "photos"
    if real.is_dir():
        folder.mkdir()
        for source in sorted(real.iterdir())[:12]:
            (folder / source.name).symlink_to(source)
    else:
        folder.mkdir()
        for index, color in enumerate(["purple", "gold", "green"]):
            Image.new("RGB", (320, 240), color).save(folder / f"{index}.jpg")
    return folder


def test_the_predict_command_of_the_readme_writes_a_table(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = marked("predict").split("&&")[-1]
    assert "./photos" in command
    done = CliRunner().invoke(mineral_batch.cli.main, shlex.split(command)[1:])
    assert done.exit_code == 0, done.output
    with Path("results/predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    labels = read_contract(starter_path()).labels
    assert [Path(row["path"]).name for row in rows] == sorted(path.name for path in photographs.iterdir())
    assert all(0 <= float(row[label]) <= 1 for row in rows for label in labels)
    assert "starter model" in done.output


def test_the_figures_shown_are_those_in_the_model() -> None:
    measured = read_contract(starter_path()).measured
    assert measured is not None
    shown = f"{measured.mean_ap:.2f}"
    for document in (ROOT / "README.md", starter_card()):
        assert f"mAP {shown}" in document.read_text("utf-8"), f"{document.name} does not show mAP {shown}"


def test_nothing_shown_points_into_this_machine() -> None:
    for document in DOCUMENTS:
        if document.exists():
            assert not re.search(r"(?<![\w./])/(work|root|home|tmp)/", document.read_text("utf-8")), document.name


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(document: Path) -> None:
    for target, _, heading in re.findall(r"\]\(([^)#:\s]*)(#([^)]+))?\)", document.read_text("utf-8")):
        file = document.parent / target if target else document
        assert file.exists(), f"{document.name}: {target}"
        if heading:
            assert heading in anchors(file.read_text("utf-8")), f"{document.name}: {target}#{heading}"


# Spelled as the field's own names are (normalize, quantize, torch's color). A word of another system would have two
# spellings in one message.
BRITISH = re.compile(
    r"colour|grey|centre|licence|behaviour|catalogue|artefact|judgement|neighbour|favour|lustre|metre\b"
    r"|(?:normal|recogn|optim|quant|initial|serial|minim|maxim|synchron|custom|standard|penal|organ|util|summar|visual"
    r"|categor|emphas|general|special)is(?:e|ing|ation)|analys(?:e\b|ed|ing)|labell(?:ed(?!by)|ing)|modell|signalled|spelt",
    re.IGNORECASE,
)
# What files, web pages and people call things.
FOREIGN = (
    '"licence"', '{"labelled": ', "says_licence", "say licence", '"unquantised"', "self.standardise", "`standardise`",
    '"catalogue"', '"catalogue number"', "Catalogue number",
)  # fmt: skip


TEXT = (".py", ".md", ".js", ".mjs", ".html", ".css", ".toml")


def test_spelling_is_american() -> None:
    folders = [ROOT / name for name in ("runtime", "train", "export", "benchmarks", "tests", "docs")]
    files = [*ROOT.iterdir(), *(path for folder in folders for path in folder.rglob("*"))]
    found = []
    for path in files:
        if path.suffix in TEXT and path != Path(__file__) and "node_modules" not in path.parts:
            text = path.read_text("utf-8")
            for allowed in FOREIGN:
                text = text.replace(allowed, "")
            found += [f"{path.relative_to(ROOT)}: {word}" for word in set(BRITISH.findall(text))]
    assert not found
