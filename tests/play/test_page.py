"""The page in a headless Chromium: keys move the picture, the slider changes it, and the rest does what it says."""

from __future__ import annotations

import os
import shutil

import pytest
from play.test_server import served

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here: pip install playwright")
_BROWSER = os.environ.get("WM_ENGINE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        _BROWSER is None, reason="no Chromium here: apt-get install chromium, or set WM_ENGINE_CHROMIUM"
    ),
]
_PATIENCE = 60_000.0  # milliseconds: a busy machine starts a browser slowly
# What the canvas shows, as text: equal texts, equal pictures.
_SHOWN = "document.getElementById('dream').toDataURL()"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=_BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def address(vectors):
    with served(vectors) as (port, _):
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture
def visit(browser, address):
    """Opens the page as another visitor, whose every error on the page fails the test."""
    opened, errors = [], []

    def visit(**options):
        context = browser.new_context(**options)
        context.set_default_timeout(_PATIENCE)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        playwright.expect(page.locator("#about")).to_contain_text("recorded episodes", timeout=_PATIENCE)
        opened.append(context)
        return page

    yield visit
    for context in opened:
        context.close()
    assert errors == []


def begin_held(page, seed: int = 5) -> None:
    """Hold the dream, and begin another one at a known place."""
    if page.locator("#pause").get_attribute("aria-pressed") == "false":
        page.click("#pause")
    for name, value in (("episode", 2), ("step", 1), ("seed", seed)):
        page.fill(f"#{name}", str(value))
    page.click("#go")
    wait(page, "#steps", lambda text: text == "0")


def ninth(page) -> str:
    """Let a dream that is held at its beginning go on; gives the first picture of its ninth step."""
    page.evaluate(
        """() => {
            window.ninth = null;
            const steps = document.getElementById("steps");
            new MutationObserver(() => {
                if (steps.textContent === "9") window.ninth ??= document.getElementById("dream").toDataURL();
            }).observe(steps, {childList: true});
        }"""
    )
    page.click("#pause")
    wait(page, "#steps", lambda text: int(text) > 9)
    shown = page.evaluate("window.ninth")
    assert shown is not None
    return shown


def wait(page, selector: str, found) -> None:
    page.wait_for_selector(selector, state="attached")
    for _ in range(int(_PATIENCE / 50)):
        if found(page.inner_text(selector)):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"{selector} shows {page.inner_text(selector)!r}")


def test_a_dream_moves_and_tells_what_it_pays(visit):
    page = visit()
    begin_held(page)
    first = page.evaluate(_SHOWN)
    assert ninth(page) != first
    wait(page, "#rate", lambda text: text.isdigit())
    float(page.inner_text("#total"))
    assert page.inner_text("#end") == "0 %"


def test_keys_take_the_wheel_and_steer(visit):
    page = visit()
    page.keyboard.down("ArrowRight")
    expect_pressed(page, "#you", True)
    right = page.locator(".key").nth(2)
    playwright.expect(right).to_have_class("key held", timeout=_PATIENCE)
    page.keyboard.up("ArrowRight")
    playwright.expect(page.locator(".key").nth(1)).to_have_class("key held", timeout=_PATIENCE)  # idle: stay
    page.keyboard.press("KeyC")
    expect_pressed(page, "#controller", True)


def test_keys_move_the_picture(visit):
    """The same start, seed and step under other keys is another picture, and under the same keys the same one."""
    page = visit()
    page.click("#you")
    shown = {}
    for name, key in (("left", "ArrowLeft"), ("right", "ArrowRight"), ("right again", "ArrowRight")):
        begin_held(page)
        page.keyboard.down(key)
        shown[name] = ninth(page)
        page.keyboard.up(key)
    assert shown["left"] != shown["right"] == shown["right again"]


def test_fingers_steer_too(visit):
    page = visit(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    left = page.locator(".key").first
    left.dispatch_event("pointerdown", {"pointerId": 1})
    expect_pressed(page, "#you", True)
    playwright.expect(left).to_have_class("key held", timeout=_PATIENCE)
    left.dispatch_event("pointerup", {"pointerId": 1})
    playwright.expect(left).to_have_class("key", timeout=_PATIENCE)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing runs out of a phone


def test_the_slider_changes_the_dream(visit):
    page = visit()
    shown = []
    for value in ("0", "2"):
        begin_held(page)
        page.locator("#temperature").fill(value)
        assert page.inner_text("#temperature-shown") == f"{value}.00"
        shown.append(ninth(page))
    assert shown[0] != shown[1]


def test_two_visitors_do_not_disturb_each_other(visit):
    one, other = visit(), visit()
    begin_held(one)
    still = one.evaluate(_SHOWN)
    begin_held(other)
    other.keyboard.down("ArrowLeft")
    assert ninth(other) != still
    assert one.evaluate(_SHOWN) == still
    expect_pressed(one, "#controller", True)
    expect_pressed(one, "#pause", True)


def test_a_moment_is_picked_by_its_picture(visit):
    page = visit()
    page.click("#more")
    tile = page.locator("#thumbnails button").nth(3)
    tile.click()
    episode, step = tile.inner_text().split(" · ")
    playwright.expect(page.locator("#episode")).to_have_value(episode.strip(), timeout=_PATIENCE)
    playwright.expect(page.locator("#step")).to_have_value(step.strip(), timeout=_PATIENCE)


def test_the_road_goes_beside(visit):
    page = visit()
    page.click("#show-road")
    playwright.expect(page.locator("#road-figure")).to_be_visible(timeout=_PATIENCE)
    page.click("#show-road")
    playwright.expect(page.locator("#road-figure")).to_be_hidden(timeout=_PATIENCE)


def test_a_recording_is_saved_as_mp4(visit):
    page = visit()
    page.click("#record")
    steps = int(page.inner_text("#steps"))
    wait(page, "#steps", lambda text: int(text) != steps)
    with page.expect_download() as saved:
        page.click("#record")
    assert saved.value.suggested_filename.endswith(".mp4")
    with open(saved.value.path(), "rb") as file:
        assert file.read(8)[4:] == b"ftyp"


def expect_pressed(page, selector: str, pressed: bool) -> None:
    playwright.expect(page.locator(selector)).to_have_attribute("aria-pressed", str(pressed).lower(), timeout=_PATIENCE)
