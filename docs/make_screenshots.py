"""Make the README's pictures, docs/report.png and docs/terminal.png, from synthetic images: no photograph is in them.

    python docs/make_screenshots.py

Needs Chromium or Chrome on the PATH, mineral-batch with the extra `train`, and about two minutes.
"""

from __future__ import annotations

import csv
import html
import io
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

import mineral_batch

DOCS = Path(__file__).parent
PACKAGE = Path(mineral_batch.__file__).parent
LARGEST = 150_000  # bytes of a picture
IMAGES = 240
COLUMNS = 100  # of the terminal
#: Minerals that are drawn so that they can be told apart.
MINERALS = "agate,azurite,cinnabar,copper,fluorite,galena,gold,malachite,opal,pyrite,quartz,rhodochrosite,sulfur"

_TERMINAL = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; background: #e9e6df; }}
pre {{ margin: 18px; padding: 18px 22px; border-radius: 10px; background: #15171a; color: #e8e6e1;
  font: 15px/1.45 "DejaVu Sans Mono", "Cascadia Mono", Menlo, monospace; white-space: pre-wrap; }}
b {{ color: #5cc8c2; font-weight: 600; }}
</style><pre>{text}</pre>"""


def main() -> None:
    """Generate images, run the commands of the README on them, and take the pictures."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if chromium is None:
        raise SystemExit("no Chromium or Chrome on the PATH")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _run(
            folder, "mineral-train", "synth", "drawn", "-n", str(IMAGES), "--minerals", MINERALS, "--max-minerals", "2"
        )
        shutil.move(folder / "drawn/images", folder / "photos")
        (folder / "photos/damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0")
        session = [_shown(folder, "mineral-batch", "predict", "./photos")]
        session.append(f"<b>$ head -3 results/predictions.csv</b>\n{_head(folder / 'results/predictions.csv')}\n")
        _run(folder, "mineral-batch", "explain", "./photos", "-o", "maps", "--top", "1")
        session.append(_shown(folder, "mineral-batch", "report", "results", "--explained", "maps"))
        lines = [line for part in session for line in part.splitlines()]
        rows = sum(max(1, math.ceil(len(re.sub("<[^>]*>", "", line)) / COLUMNS)) for line in lines)
        (folder / "terminal.html").write_text(_TERMINAL.format(text="\n".join(lines)), "utf-8")
        _picture(chromium, folder / "results/report.html", DOCS / "report.png", 1200, 780)
        _picture(chromium, folder / "terminal.html", DOCS / "terminal.png", 1000, 66 + 22 * rows)


def _run(folder: Path, *command: str) -> str:
    """Run a command as a user would; return what it printed."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(  # noqa: S603 - the commands above
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode not in (0, 3):  # 3: the damaged image
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}")
    return done.stdout


def _shown(folder: Path, *command: str) -> str:
    """Run a command; return the prompt and what it printed, as HTML."""
    output = re.sub(r"[^\n]*\r", "", _run(folder, *command)).strip()
    output = output.replace(f"{PACKAGE.parent}{os.sep}", "")  # no path of this machine in a picture
    return f"<b>$ {html.escape(' '.join(command))}</b>\n{html.escape(output)}\n"


def _head(table: Path) -> str:
    """Return the first rows of a table with their first cells."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = [row[:7] for _, row in zip(range(3), csv.reader(file), strict=False)]
    return html.escape("\n".join(",".join([*row, "..."]) for row in rows))


def _picture(chromium: str, page: Path, target: Path, width: int, height: int) -> None:
    """Take a picture of a page, in as few colors as keep it below `LARGEST`."""
    raw, profile = page.with_suffix(".png"), page.with_suffix(".profile")
    switches = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --hide-scrollbars"
    command = [chromium, *switches.split(), f"--user-data-dir={profile}", f"--window-size={width},{height}"]
    command += [f"--screenshot={raw}", page.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)  # noqa: S603 - as above
    with Image.open(raw) as opened:
        image = opened.convert("RGB")
    for colors in (256, 128, 64, 32):
        out = io.BytesIO()
        image.quantize(colors, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
        if out.tell() < LARGEST:
            break
    else:
        raise SystemExit(f"{target} has {out.tell()} bytes in 32 colors")
    target.write_bytes(out.getvalue())
    sys.stdout.write(f"{target}: {width} x {height}, {colors} colors, {out.tell():,} bytes\n")


if __name__ == "__main__":
    main()
