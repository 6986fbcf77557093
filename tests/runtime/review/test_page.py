"""The review page in Chromium, by keyboard alone."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from mineral_batch.results.csv import write_csv
from mineral_batch.results.read import read_results
from mineral_batch.review.decisions import read_decisions

from .serving import Server, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-quic"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    if CHROMIUM is None:
        pytest.skip("needs chromium on the PATH")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


def opened(browser: Any, server: Server, width: int = 1200) -> Any:
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda r: r.url.startswith(server.address) or page.problems.append(f"asked for {r.url}"))
    page.goto(server.address)
    page.wait_for_selector("#candidates button")
    seen(page)
    return page


def seen(page: Any) -> None:
    """Wait until the photograph is there: before, no key decides."""
    page.wait_for_selector("#view[aria-busy='false']", state="attached")


def progress(page: Any, text: str) -> None:
    page.wait_for_function("text => document.getElementById('progress').textContent === text", arg=text)
    seen(page)


def test_a_whole_review_needs_the_keyboard_only(browser: Any, server: Server, results: Path) -> None:
    page = opened(browser, server)
    page.select_option("#order", "file")
    page.wait_for_function("() => document.getElementById('name').textContent.includes('a.jpg')")
    page.keyboard.press("0")  # none of them
    progress(page, "1 of 5 labeled")
    page.keyboard.type("gol")  # any label by its first letters
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    progress(page, "2 of 5 labeled")
    page.keyboard.press("Shift+U")
    progress(page, "2 of 5 labeled, 1 unsure")
    page.keyboard.press("Shift+Z")
    progress(page, "2 of 5 labeled")
    page.keyboard.press("Shift+U")
    progress(page, "2 of 5 labeled, 1 unsure")
    page.keyboard.type("zircon")  # a label that the model does not know is asked for twice
    page.keyboard.press("Enter")
    assert "not a label yet" in page.text_content("#found")
    assert "zircon" not in page.text_content("#chosen")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    progress(page, "3 of 5 labeled, 1 unsure")
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    progress(page, "4 of 5 labeled, 1 unsure")
    page.wait_for_selector("#done:not([hidden])")
    assert not page.problems
    server.process.kill()
    server.process.wait()
    decided = {d.path: d for d in read_decisions(results)}
    statuses = [decided[path].status for path in sorted(decided)]
    assert sorted(statuses) == ["labeled"] * 4 + ["unsure"]
    assert decided["photos/a.jpg"].minerals == ()
    assert any("gold" in d.minerals for d in decided.values())
    assert any("zircon" in d.minerals for d in decided.values())


def test_the_grid_decides_a_page_and_what_is_below_the_threshold_begins_as_no(
    browser: Any, server: Server, results: Path
) -> None:
    page = opened(browser, server)
    page.keyboard.press("Shift+M")
    page.wait_for_selector("#problem:not([hidden])")
    assert "mineral-batch explain" in page.text_content("#problem")
    page.keyboard.press("Shift+G")
    page.wait_for_selector("#below-field:not([hidden])")
    page.wait_for_function("() => document.getElementById('question').textContent.includes('quartz')")
    assert page.input_value("#mineral") == "quartz"  # the first with something left
    assert page.locator("#mineral option").first.text_content() == "agate (0 left)"
    page.select_option("#mineral", "gold")
    page.wait_for_function("() => document.getElementById('done').textContent.includes('reports gold')")
    page.check("#below")
    page.wait_for_function("() => document.getElementById('question').textContent.includes('gold')")
    page.click("#tiles button:first-child")
    page.click("#confirm")
    progress(page, "1 of 5 labeled, 4 rejected")
    assert not page.problems
    server.process.kill()
    server.process.wait()
    assert sum("gold" in d.minerals and d.status == "labeled" for d in read_decisions(results)) == 1


def test_the_grid_keeps_the_other_minerals_that_a_person_named(browser: Any, server: Server) -> None:
    both = {"row": 0, "status": "labeled", "minerals": ["agate", "gold"]}
    server.api("api/decide", {"decisions": [both, {"row": 1, "status": "labeled", "minerals": ["agate"]}]})
    page = opened(browser, server)
    page.keyboard.press("Shift+G")
    page.wait_for_selector("#below-field:not([hidden])")
    page.uncheck("#undecided")
    page.check("#below")
    page.select_option("#mineral", "gold")
    page.wait_for_function("() => /Which of these 5 are gold/.test(document.getElementById('question').textContent)")
    page.click("#tiles button[aria-label^='photos/a.jpg']")  # not gold after all
    page.click("#tiles button[aria-label^='photos/b']")  # gold, too
    page.click("#confirm")
    progress(page, "2 of 5 labeled, 3 rejected")
    assert server.api("api/item/0")["decision"]["minerals"] == ["agate"]
    assert server.api("api/item/1")["decision"]["minerals"] == ["agate", "gold"]


def test_two_tabs_see_each_others_decisions(browser: Any, server: Server) -> None:
    first, second = opened(browser, server), opened(browser, server)
    first.keyboard.press("0")
    progress(first, "1 of 5 labeled")
    second.keyboard.press("0")
    second.wait_for_function("() => /^[12] of 5 labeled/.test(document.getElementById('progress').textContent)")
    assert not first.problems + second.problems


def test_a_server_that_stopped_is_said_and_the_page_stays(browser: Any, server: Server) -> None:
    page = opened(browser, server)
    server.process.kill()
    server.process.wait()
    page.keyboard.press("0")
    page.wait_for_selector("#problem:not([hidden])")
    assert "Start mineral-batch review again" in page.text_content("#problem")


@pytest.mark.parametrize("width", [360, 400, 800])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_narrow_screens_in_both_schemes(browser: Any, server: Server, width: int, scheme: str) -> None:
    page = opened(browser, server, width)
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.keyboard.press("Shift+G")
    page.wait_for_selector("#below-field:not([hidden])")
    page.check("#below")
    page.wait_for_selector("#tiles button")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_no_key_decides_a_photograph_that_nobody_has_seen(browser: Any, server: Server) -> None:
    page = browser.new_page()
    held = []
    page.route("**/image/1", lambda route: held.append(route))  # noqa: PLW0108 - a method of a list cannot be marked
    page.goto(server.address)
    page.wait_for_selector("#candidates button")
    page.select_option("#order", "file")
    page.wait_for_function("() => document.getElementById('name').textContent.includes('a.jpg')")
    seen(page)
    page.keyboard.press("0")
    page.wait_for_selector("#view[aria-busy='true']", state="attached")
    assert not page.is_visible("#photo")  # the last photograph does not stand under the next one's name
    page.keyboard.press("0")
    page.keyboard.press("Shift+U")
    page.wait_for_timeout(200)
    assert server.api("api/state")["counts"] == {"labeled": 1, "unsure": 0, "rejected": 0}
    for route in held:
        route.continue_()
    seen(page)
    assert page.is_visible("#photo")
    page.keyboard.press("0")
    progress(page, "2 of 5 labeled")


def with_maps(results: Path) -> Path:
    """Maps of two minerals of the first photograph, as `explain` writes them; the second one's file is gone."""
    folder = results.parent / "maps"
    (folder / "overlays").mkdir(parents=True)
    rows = read_results(results).predictions
    cells = []
    for label in ("quartz", "gold", "agate"):
        name = f"overlays/{label}.png"
        cells.append(("photos/a.jpg", label, rows.scores[0, rows.labels.index(label)], name))
        Image.new("RGB", (90, 60), "red").save(folder / name)
    (folder / "overlays" / "gold.png").unlink()
    write_csv(folder / "maps.csv", ("path", "mineral", "probability", "overlay"), cells)
    return folder


def test_maps_of_where_the_model_looks_come_one_after_the_other(browser: Any, results: Path) -> None:
    with serving(results, "--explained", str(with_maps(results))) as server:
        page = opened(browser, server)
        page.select_option("#order", "file")
        page.wait_for_function("() => document.getElementById('name').textContent.includes('a.jpg')")
        assert page.locator("#maps button").all_text_contents() == ["quartz", "gold", "agate"]
        shown = []
        for _ in range(4):
            page.keyboard.press("Shift+M")
            seen(page)
            pressed = page.locator("#maps [aria-pressed='true']").all_text_contents()
            shown.append((pressed, page.get_attribute("#photo", "alt"), page.is_visible("#photo")))
            gone = page.text_content("#gone") if page.is_visible("#gone") else ""
            assert gone == ("This map is no longer there, or cannot be read." if pressed == ["gold"] else "")
        look = "Where the model looks for {}".format
        assert shown == [
            (["quartz"], look("quartz"), True),
            (["gold"], look("gold"), False),
            (["agate"], look("agate"), True),
            ([], "photos/a.jpg", True),
        ]
        page.click("#maps button >> nth=0")
        seen(page)
        assert page.evaluate("document.getElementById('photo').naturalWidth") == 90
        page.keyboard.press("0")  # the next photograph has none
        progress(page, "1 of 5 labeled")
        assert page.get_attribute("#photo", "alt").startswith("photos/b")
        page.keyboard.press("Shift+M")
        page.wait_for_selector("#problem:not([hidden])")
        assert page.text_content("#problem") == "There is no map of this photograph."
        assert not page.problems


def test_a_run_in_which_no_photograph_has_a_map_says_so(browser: Any, results: Path) -> None:
    folder = results.parent / "maps"
    folder.mkdir()
    (folder / "maps.csv").write_text("path,mineral,probability,overlay\n")
    with serving(results, "--explained", str(folder)) as server:
        page = opened(browser, server)
        assert not page.is_visible("#maps")
        page.keyboard.press("Shift+M")
        page.wait_for_selector("#problem:not([hidden])")
        assert page.text_content("#problem") == "There is no map of this photograph."


def test_a_hostile_label_is_text_in_the_page(browser: Any, server: Server) -> None:
    name = '<img src=x onerror=alert(1)>"&lt'
    both = [{"row": row, "status": "labeled", "minerals": [name]} for row in range(2)]
    server.api("api/decide", {"decisions": both})
    page = opened(browser, server)
    page.on("dialog", lambda dialog: page.problems.append(dialog.message))
    page.uncheck("#undecided")
    page.select_option("#order", "file")
    page.wait_for_function("() => document.getElementById('before').textContent.includes('Decided')")
    assert name in page.text_content("#chosen")
    assert name in page.text_content("#candidates")
    page.keyboard.type("<img")
    page.locator("#search").fill("<img")
    assert page.text_content("#found button") == name
    assert page.locator("img[src='x']").count() == 0
    assert not page.problems


def test_the_grid_is_walked_with_arrows_and_saved_from_anywhere(browser: Any, server: Server) -> None:
    page = opened(browser, server, width=400)
    page.keyboard.press("Shift+G")
    page.wait_for_selector("#below-field:not([hidden])")
    page.check("#below")
    page.select_option("#mineral", "gold")
    page.wait_for_function("() => /Which of these 5 are gold/.test(document.getElementById('question').textContent)")
    captions = page.locator("#tiles button > span").all_text_contents()
    assert all("%not gold" in caption for caption in captions)  # each with its probability
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("ArrowRight")  # the first; the tiles are in two columns
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    assert page.locator("#tiles button").nth(2).get_attribute("aria-pressed") == "false"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")  # stays in the grid
    assert page.evaluate("[...document.querySelectorAll('#tiles button')].indexOf(document.activeElement)") == 1
    assert page.locator("#confirm").bounding_box()["y"] < 800  # Save is in sight on a small screen
    page.keyboard.press("Shift+Enter")
    progress(page, "1 of 5 labeled, 4 rejected")
    assert not page.problems


def test_save_is_in_sight_on_a_narrow_screen_and_the_next_photograph_too(browser: Any, server: Server) -> None:
    page = opened(browser, server, width=400)
    page.evaluate("window.scrollTo(0, 300)")
    box = page.locator("#accept").bounding_box()
    assert 0 < box["y"] < 800 - box["height"]
    page.click("#accept")
    progress(page, "1 of 5 labeled")
    assert page.evaluate("window.scrollY") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Any, results: Path, scheme: str) -> None:
    """The rules of WCAG 2.2 A and AA that a program can check, in each state of the page."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    with serving(results, "--explained", str(with_maps(results))) as server:
        page = opened(browser, server)
        page.emulate_media(color_scheme=scheme)
        page.select_option("#order", "file")
        page.wait_for_function("() => document.getElementById('name').textContent.includes('a.jpg')")
        seen(page)

        def violations() -> list[str]:
            found = axe.Axe().run(page).response["violations"]
            return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found]

        assert not violations()
        page.keyboard.press("Shift+M")
        seen(page)
        page.keyboard.type("go")
        assert not violations()
        page.keyboard.press("Escape")
        page.keyboard.press("Shift+G")
        page.wait_for_selector("#below-field:not([hidden])")
        page.check("#below")
        page.wait_for_selector("#tiles button")
        assert not violations()
        page.keyboard.press("Shift+H")
        page.wait_for_selector("#keys[open]")
        assert not violations()


def test_every_control_has_a_name(browser: Any, server: Server) -> None:
    page = opened(browser, server)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, a')].filter(e => e.checkVisibility()
        && !e.textContent.trim() && !e.getAttribute('aria-label') && !e.closest('label')).map(e => e.outerHTML)"""
    )
    assert not nameless
