"""The page in a real browser."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest

from .browser import Browser, browser, needs_browser
from .runs import EVIL, LABELS, ROWS, WORSE_SHOWN, explain, report, write_csv, write_predictions


@needs_browser
def test_in_a_browser(run: Path) -> None:
    """One browser for all of it: it takes seconds to start."""
    explain(Path("maps"))
    report("-o", "page.html", "--labels", "labels.csv", "--explained", "maps")
    report("-o", "folder", "--folder", "--explained", "maps")
    write_predictions(
        run / "predictions.csv", [(f"photos/{i:04}.jpg", (0.9 - i / 1000, 0, 0, 0), "") for i in range(150)]
    )
    report("-o", "many.html", "--thumbnails", "0")
    with browser(run.parent) as page:
        page.open(Path("page.html"))
        nothing_is_run(page)
        filters_choose(page)
        keys_are_enough(page)
        figures_lead_to_the_gallery(page)
        dark_is_dark(page)
        maps_are_seen_beside_their_photographs(page)
        assert page.troubles() == []
        page.open(Path("folder/index.html"))
        page.wait("[...document.querySelectorAll('#cards img')].filter(i => i.naturalWidth > 0).length >= 3")
        page.evaluate("document.getElementById('maps').click()")
        page.wait(
            "[...document.querySelectorAll('#cards img[src^=maps]')].filter(i => i.naturalWidth > 0).length === 3"
        )
        assert page.troubles() == []
        page.open(Path("many.html"))
        pages_turn(page)
        # Even without the policy nothing is run: what keeps names harmless is that they are text.
        bare = Path("page.html").read_text("utf-8").replace("Content-Security-Policy", "X-Nothing")
        Path("bare.html").write_text(bare, "utf-8")
        page.open(Path("bare.html"))
        nothing_is_run(page)
        assert page.troubles() == []


def nothing_is_run(page: Browser) -> None:
    assert page.evaluate("document.title") == f"Minerals in {len(ROWS)} photographs"
    page.choose("order", "file")
    shown = page.names()
    assert {EVIL, WORSE_SHOWN} <= set(shown)
    assert page.evaluate("document.querySelectorAll('img:not([src^=\"data:image/jpeg\"])').length") == 0
    assert page.evaluate("document.querySelectorAll('script:not([type]):not(:empty)').length") == 1


def filters_choose(page: Browser) -> None:
    page.choose("order", "file")
    assert len(page.names()) == len(ROWS) + 1
    expected = {
        "several": ["b.jpg"],
        "nothing": ["d.jpg"],
        "failed": ["<b>bad.jpg"],
        "unsure": ["b.jpg", "c.jpg", "d.jpg", EVIL, WORSE_SHOWN],
        "missed": ["c.jpg", "d.jpg"],
        "wrong": ["c.jpg", EVIL],
    }
    for kind, names in expected.items():
        page.choose("kind", kind)
        assert page.names() == names, kind
    page.choose("kind", "all")
    page.choose("mineral", "gold")
    assert page.names() == ["b.jpg", "c.jpg"]
    page.choose("least", "0.2")
    assert page.names() == ["b.jpg", "c.jpg", "d.jpg"]
    page.choose("query", "C.JP")
    assert page.names() == ["c.jpg"]
    assert "1 of 8" in page.evaluate("document.getElementById('found').textContent")
    page.redrawn("document.querySelector('#controls button').click()")
    assert page.evaluate("[...document.querySelectorAll('#cards h3')].map(e => e.textContent)") == [
        "agate (3)", "gold (2)", "pyrite (1)", "quartz (1)", "no mineral (1)", "could not be read (1)",
    ]  # fmt: skip
    page.redrawn("document.querySelectorAll('#cards h3 button')[1].click()")
    assert page.names() == ["b.jpg", "c.jpg"], "a heading shows all of its mineral"
    page.redrawn("document.querySelector('#controls button').click()")
    page.choose("order", "name")
    assert page.names()[0] == EVIL
    page.choose("order", "file")


def keys_are_enough(page: Browser) -> None:
    page.evaluate("document.querySelector('#controls button').focus()")
    page.press("Tab")
    at = "[...document.querySelectorAll('#cards .card')].indexOf(document.activeElement)"
    assert page.evaluate(at) == 0
    page.press("ArrowRight")
    page.press("ArrowRight")
    page.press("ArrowLeft")
    assert page.evaluate(at) == 1
    page.press("ArrowDown")
    assert page.evaluate(at) > 3
    page.press("ArrowUp")
    assert page.evaluate(at) == 1
    page.press("Enter")
    page.wait("document.getElementById('detail').open")
    name = "document.getElementById('detail-name').textContent"
    assert page.evaluate(name) == "photos/b.jpg"
    assert page.evaluate("document.querySelector('#detail a').getAttribute('href')") == "./photos/b.jpg"
    page.press("ArrowRight")
    assert page.evaluate(name) == "photos/c.jpg"
    page.press("Escape")
    page.wait("!document.getElementById('detail').open")
    page.wait(f"{at} === 2")
    assert page.evaluate("[...document.querySelectorAll('#cards .card')].filter(e => e.tabIndex === 0).length") == 1


def figures_lead_to_the_gallery(page: Browser) -> None:
    page.evaluate("document.querySelector('#minerals button[data-mineral=gold]').click()")
    assert page.names() == ["b.jpg", "c.jpg"]
    page.evaluate("document.querySelector('#alarms .card').click()")
    assert page.evaluate("document.getElementById('detail-name').textContent") == "photos/c.jpg"
    page.press("Escape")
    page.wait("!document.getElementById('detail').open")


def dark_is_dark(page: Browser) -> None:
    brightness = "Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])"
    for scheme, is_dark in (("light", False), ("dark", True)):
        page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        assert (page.evaluate(brightness) < 60) == is_dark
    page.evaluate("document.getElementById('theme').click()")
    assert page.evaluate(brightness) > 200


def maps_are_seen_beside_their_photographs(page: Browser) -> None:
    shown = "[...document.querySelectorAll('#cards .chip')].map(e => e.textContent)"
    looked_for = "(document.querySelector('#detail .two .chip') ?? {textContent: 'photograph'}).textContent"
    page.redrawn("document.querySelector('#controls button').click()")
    page.choose("kind", "explained")
    page.choose("order", "mineral")
    assert page.names() == ["a.jpg", "b.jpg", "b.jpg"]
    assert page.evaluate(shown) == []
    assert page.evaluate("document.getElementById('legend').hidden")
    page.evaluate("document.getElementById('maps').click()")
    assert page.evaluate(shown) == ["agate", "gold", "quartz"], "each under its own mineral"
    assert not page.evaluate("document.getElementById('legend').hidden")
    assert page.evaluate("[...document.querySelectorAll('#alarms .chip')].length") == 0, "c.jpg has no map of gold"
    page.choose("mineral", "quartz")
    page.evaluate("document.querySelector('#cards .card').click()")
    assert page.evaluate(looked_for) == "quartz"
    for expected in ("photograph", "gold", "quartz"):
        page.press("m")
        assert page.evaluate(looked_for) == expected
    pressed = "document.querySelector('#detail .view[aria-pressed=true]').textContent"
    assert page.evaluate(pressed) == "quartz 70.0%"
    page.evaluate("document.querySelectorAll('#detail .view')[1].focus()")
    page.press("Enter")
    assert page.evaluate(looked_for) == "gold"
    page.press("Escape")
    page.wait("!document.getElementById('detail').open")
    page.redrawn("document.querySelector('#controls button').click()")
    assert page.evaluate(shown) == []


def pages_turn(page: Browser) -> None:
    assert page.names() == ["0000.jpg", "0001.jpg", "0002.jpg", "<b>bad.jpg"], "the overview: three of each mineral"
    assert "4 of 151 photographs: up to 3" in page.evaluate("document.getElementById('found').textContent")
    page.choose("order", "probable")
    assert len(page.names()) == 60
    page.evaluate("document.querySelector('#cards li:last-child .card').focus()")
    page.press("ArrowRight")
    assert page.names()[0] == "0060.jpg"
    page.evaluate("document.querySelector('#pages button:last-child').click()")
    assert page.names()[-2:] == ["0149.jpg", "<b>bad.jpg"]


@needs_browser
@pytest.mark.parametrize("width", [360, 390, 800, 1440])
def test_nothing_is_wider_than_the_window(run: Path, width: int) -> None:
    explain(Path("maps"))
    manifest = run / "run.json"
    long = {"inputs": ["photos/" + "x" * 300], "model": {"name": "m" * 80, "deep": {"deeper": {"hash": "0" * 64}}}}
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"more": long}))
    report("-o", "page.html", "--labels", "labels.csv", "--explained", "maps")
    with browser(run.parent) as page:
        page.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=780, deviceScaleFactor=1, mobile=width < 500
        )
        page.open(Path("page.html"))
        page.wait("document.querySelectorAll('#cards .card').length > 0")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.evaluate("document.querySelector('#cards .card').click()")
        box = page.evaluate(
            "(b => [b.left, b.top, b.right, b.bottom])(document.getElementById('detail').getBoundingClientRect())"
        )
        assert box[0] >= 0
        assert box[1] >= 0
        assert box[2] <= width
        assert box[3] <= 780
        assert page.evaluate("(d => d.scrollWidth <= d.clientWidth)(document.getElementById('detail'))")


@needs_browser
def test_print_needs_few_pages(run: Path) -> None:
    """A page of the gallery, the counts, the accuracy: not a sheet of paper per figure."""
    rows = [(f"{i:04}.jpg", tuple(0.9 if i % 4 == k else 0.1 for k in range(4)), LABELS[i % 4]) for i in range(200)]
    write_predictions(run / "predictions.csv", rows)
    write_csv(Path("labels.csv"), [["path", "labels"], *([path, labels] for path, _, labels in rows)])
    report("-o", "page.html", "--labels", "labels.csv")
    with browser(run.parent) as page:
        page.open(Path("page.html"))
        page.choose("order", "probable")
        pdf = base64.b64decode(page.send("Page.printToPDF", preferCSSPageSize=True)["data"])
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 4
