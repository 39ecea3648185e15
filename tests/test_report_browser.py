"""The report in a real browser: opened from disk in headless Chromium, driven by keyboard and mouse."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gcpo_bench.reports.page import write_report
from tests.run_factory import hostile_texts, make_study

from .processes import LIMIT_S

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver on the PATH")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip
RIGHT, LEFT, HOME, SPACE = "\ue014", "\ue012", "\ue011", " "
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""Key of an element's id in W3C WebDriver answers."""


class Browser:
    """The few WebDriver commands these tests need; https://www.w3.org/TR/webdriver2/."""

    def __init__(self, port: int, profile: Path) -> None:
        self._url = f"http://127.0.0.1:{port}/session"
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        capabilities = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        self._url += "/" + self._send("POST", "", {"capabilities": capabilities})["sessionId"]

    def _send(self, verb: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"}, method=verb)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=LIMIT_S) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None

    def open(self, path: Path) -> None:
        self._send("POST", "/url", {"url": path.as_uri()})

    def run(self, script: str) -> Any:
        return self._send("POST", "/execute/sync", {"script": script, "args": []})

    def find(self, selector: str) -> str:
        return str(self._send("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT])

    def press(self, selector: str, keys: str) -> None:
        self._send("POST", f"/element/{self.find(selector)}/value", {"text": keys})

    def click(self, selector: str) -> None:
        self._send("POST", f"/element/{self.find(selector)}/click", {})

    def devtools(self, command: str, **parameters: Any) -> None:
        self._send("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def complaints(self) -> list[str]:
        """Console errors since the last call: script errors and what the content policy refused."""
        entries = self._send("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def text(self, selector: str) -> str:
        return str(self.run(f"return document.querySelector('{selector}').textContent"))

    def pixels(self) -> str:
        """The large map, once it has come to rest: pictures are decoded in the background."""
        seen, drawn = "", self._pixels()
        while drawn != seen:
            time.sleep(0.05)
            seen, drawn = drawn, self._pixels()
        return drawn

    def _pixels(self) -> str:
        return str(self.run("return document.getElementById('map-large').toDataURL()"))

    def close(self) -> None:
        self._send("DELETE", "")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert DRIVER is not None
    driver = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        session = _connect(port, tmp_path_factory.mktemp("profile"))
        yield session
        session.close()
    finally:
        driver.terminate()
        driver.wait(timeout=LIMIT_S)


def _connect(port: int, profile: Path) -> Browser:
    for _ in range(int(10 * LIMIT_S)):
        try:
            return Browser(port, profile)
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise AssertionError("chromedriver did not answer")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("browser")
    write_report(make_study(root / "runs", methods=("grpo", "gcpo"), steps=30), root / "out", formats=["html"])
    return root / "out" / "report.html"


@pytest.fixture
def page(browser: Browser, report: Path) -> Browser:
    browser.open(report)
    return browser


def test_the_page_opens_from_disk_without_a_complaint(page: Browser) -> None:
    assert page.complaints() == []
    assert page.run("return document.getElementById('maps').hidden") is False


def test_the_slider_moves_through_the_training_steps_by_keyboard(page: Browser) -> None:
    assert page.text("#map-step") == "30 (4 of 4)"
    last = page.pixels()
    page.press("#map-slider", LEFT)
    assert page.text("#map-step") == "20 (3 of 4)"
    assert page.pixels() != last
    page.press("#map-slider", HOME)
    assert page.text("#map-step") == "1 (1 of 4)"
    assert page.text("#map-words").startswith("Step 1: 42 of 144 tokens are trained on")
    page.press("#map-slider", RIGHT * 3)
    assert page.pixels() == last


def test_the_large_map_shows_each_criterion_in_its_colour(page: Browser) -> None:
    corner = (
        "return [...document.getElementById('map-large').getContext('2d').getImageData(2, 2, 1, 1).data].slice(0, 3)"
    )
    assert page.run(corner) == [230, 159, 0]  # the first token is an initial one: Okabe-Ito orange
    page.click(".map-criterion[value=initial]")
    assert page.run(corner) != [230, 159, 0]


def test_every_tile_shows_its_map_large(page: Browser) -> None:
    tiles = page.run("return [...document.querySelectorAll('.tile')].map(tile => tile.dataset.view)")
    assert tiles == ["image", "chosen", "entropy", "entropy_gradient", "similarity", "weight", "divergence"]
    pictures = []
    for name in tiles:
        page.press(f".tile[data-view={name}]", SPACE)
        pictures.append(page.pixels())
        assert (
            page.run(f"return document.querySelector('.tile[data-view={name}]').getAttribute('aria-pressed')") == "true"
        )
    assert len(set(pictures)) == len(tiles)


def test_another_run_shows_its_own_choice(page: Browser) -> None:
    before = page.pixels()
    page.press("#map-run", "grpo")
    assert page.text("#map-words").startswith("Step 30: 144 of 144 tokens are trained on")
    assert page.pixels() != before


def test_another_prompt_shows_another_image(page: Browser) -> None:
    before = page.pixels()
    page.press("#map-prompt", "three")
    assert page.run("return document.querySelector('#map-large').getAttribute('aria-label')").endswith(
        "three yellow squares"
    )
    assert page.pixels() != before


def test_play_runs_to_the_last_step_and_stops(page: Browser) -> None:
    page.press("#map-slider", HOME + RIGHT * 2)
    page.click("#map-play")
    deadline = time.monotonic() + LIMIT_S
    while page.text("#map-play") != "Play" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (page.text("#map-play"), page.text("#map-step")) == ("Play", "30 (4 of 4)")


@pytest.mark.parametrize("width", [320, 390, 768, 1440, 2560])
def test_the_page_never_scrolls_sideways(page: Browser, width: int) -> None:
    page.devtools(
        "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
    )
    page.run("document.querySelectorAll('details').forEach(item => { item.open = true })")
    inner, outer = page.run("return [document.documentElement.scrollWidth, window.innerWidth]")
    page.devtools("Emulation.clearDeviceMetricsOverride")
    assert outer == width
    assert inner <= outer


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_marks_stand_out_from_the_paper(page: Browser, scheme: str) -> None:
    page.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    contrasts = page.run(
        """
        const rgb = text => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
        const light = color => rgb(color).map(v => v / 255)
          .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
          .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        const paper = light(getComputedStyle(document.body).backgroundColor);
        const ratio = color => (Math.max(light(color), paper) + 0.05) / (Math.min(light(color), paper) + 0.05);
        const style = (selector, name) => getComputedStyle(document.querySelector(selector))[name];
        return {ink: ratio(style('main', 'color')), quiet: ratio(style('.about', 'color')),
                link: ratio(style('nav a', 'color')),
                line: ratio(style('.swatch line', 'stroke')), chart: ratio(style('svg.chart', 'color'))};
        """
    )
    page.devtools("Emulation.setEmulatedMedia", features=[])
    assert min(contrasts["ink"], contrasts["chart"]) >= 7
    assert min(contrasts["quiet"], contrasts["link"]) >= 4.5  # WCAG AA for text
    assert contrasts["line"] >= 3  # and for graphics


def test_every_image_has_a_text_and_every_control_a_name(page: Browser) -> None:
    nameless = page.run(
        """
        const named = item => item.labels?.length || item.getAttribute('aria-label') || item.textContent.trim();
        return [...document.querySelectorAll('img:not([alt]), img[alt=""], svg:not([aria-hidden]):not([aria-label])'),
          ...[...document.querySelectorAll('select, input, button')].filter(item => !named(item))]
          .map(item => item.outerHTML);
        """
    )
    assert nameless == []


def test_hostile_prompts_execute_nothing(browser: Browser, tmp_path: Path) -> None:
    paths = make_study(tmp_path / "runs", methods=("gcpo",), steps=10, prompts_per_task=3, prompt_texts=hostile_texts())
    write_report(paths, tmp_path / "out", formats=["html"])
    browser.open(tmp_path / "out" / "report.html")
    for index in range(browser.run("return document.getElementById('map-prompt').options.length")):
        browser.run(
            f"const menu = document.getElementById('map-prompt'); menu.value = '{index}';"
            "menu.dispatchEvent(new Event('change'))"
        )
    browser.run("document.querySelectorAll('details').forEach(item => { item.open = true })")
    assert browser.run("return window.hacked === undefined")
    assert browser.complaints() == []
    assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")


def test_without_scripts_the_last_step_is_shown_as_a_picture(browser: Browser, report: Path) -> None:
    browser.devtools("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(report)
    browser.devtools("Emulation.setScriptExecutionDisabled", value=False)
    shown = browser.run("const image = document.querySelector('.stills img'); return [image.naturalWidth, image.alt]")
    assert shown[0] > 1000
    assert "From left: image, chosen tokens, entropy, entropy gradient, similarity, weight, divergence." in shown[1]


def test_a_column_is_sorted_by_its_head(page: Browser) -> None:
    values = """
        const rows = [...document.querySelectorAll('table.scores tbody tr')];
        return rows.map(row => parseFloat(row.cells[1].textContent));
    """
    overall = "table.scores thead th:nth-child(2) button"
    page.press(overall, "\ue007")  # Enter: the keyboard sorts as well as the mouse
    falling = page.run(values)
    assert falling == sorted(falling, reverse=True)
    assert (
        page.run("return document.querySelector('table.scores th:nth-child(2)').getAttribute('aria-sort')")
        == "descending"
    )
    page.click(overall)
    assert page.run(values) == sorted(falling)


def test_a_variant_and_a_task_can_be_left_out(page: Browser) -> None:
    shown = """
        const visible = item => item.getClientRects().length > 0;
        document.querySelectorAll('details').forEach(item => { item.open = true });
        const rows = [...document.querySelectorAll('table.scores tbody tr')].filter(visible);
        const pairs = [...document.querySelectorAll('.pair')].filter(visible);
        const lines = [...document.querySelectorAll('#curves [id*="line-series-"]')];
        const drawn = lines.filter(line => line.style.display !== 'none');
        return {rows: rows.map(row => row.dataset.variant), tasks: [...new Set(pairs.map(pair => pair.dataset.task))],
                lines: drawn.length / lines.length, albums: new Set(pairs.map(pair => pair.closest('.album'))).size};
    """
    before = page.run(shown)
    assert before["rows"] == ["start", "grpo", "gcpo"]
    assert (before["lines"], len(before["tasks"]) > 1) == (1, True)
    page.click("#filters input[value=grpo]")
    after = page.run(shown)
    assert after["rows"] == ["start", "gcpo"]
    assert after["lines"] == 0.5
    task = after["tasks"][0]
    page.press("#filter-task", task)
    assert page.run(shown)["tasks"] == [task]
    assert page.text("#filters summary") == f"Shown: 2 of 3 variants, {task}"
    page.click("#filters fieldset button")  # "All"
    assert page.run(shown)["rows"] == ["start", "grpo", "gcpo"]


def test_a_curve_tells_its_values_to_the_keyboard_and_the_pointer(page: Browser) -> None:
    plot = page.run("return JSON.parse(document.querySelector('#curves svg.chart').dataset.plot)")
    chart = "#curves svg.chart"
    page.press(chart, "\ue010")  # End
    last = page.text(".tip")
    assert last.startswith("step 30")
    assert last.count("gcpo ") == 1
    value = float(last.split("gcpo ")[1].replace("\u2212", "-"))
    series = next(line for line in plot["series"] if line["label"] == "gcpo")
    assert value == pytest.approx(series["y"][-1])
    page.press(chart, LEFT)
    assert page.text(".tip").startswith("step 29")
    page.press(chart, "\ue00c")  # Escape
    assert page.run("return document.querySelector('.tip').hidden") is True
    page.run(
        """
        const svg = document.querySelector('#curves svg.chart'), frame = svg.getBoundingClientRect();
        const plot = JSON.parse(svg.dataset.plot), scale = frame.width / svg.viewBox.baseVal.width;
        const x = plot.box[0] + (15 - plot.range[0]) / (plot.range[1] - plot.range[0]) * (plot.box[2] - plot.box[0]);
        svg.dispatchEvent(new PointerEvent('pointermove', {clientX: frame.left + x * scale, clientY: frame.top + 20}));
        """
    )
    assert page.text(".tip").startswith("step 15")
