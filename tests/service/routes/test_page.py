"""The web page in a real browser: console errors, policy violations and failed requests are failures."""

from __future__ import annotations

import base64
import dataclasses
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    FilePayload,
    Page,
    Request,
    Response,
    Route,
    expect,
    sync_playwright,
)

from indexer.answers import Place
from indexer.index import Index
from service.security.keys import KeyFile, Role
from service.settings import KEYS_FILE

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from tests.service.conftest import FakeIndex, Network, Start

MakePhoto = Callable[..., bytes]
Wait = Callable[[Callable[[], bool]], None]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1440, "height": 900}
PATIENCE_S = 60
"""For a machine that does something else besides."""


class Watched:
    """A browser's page and all that went wrong in it."""

    def __init__(self, page: Page, base: str) -> None:
        self.page = page
        self.base = base
        self.wrong: list[str] = []
        self.asked: list[Request] = []
        self.allowed_statuses: set[int] = set()
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        page.on("requestfailed", self._failed)
        page.on("request", self._request)
        page.on("response", self._response)

    def open(self, path: str = "/", ready: bool = True) -> Page:
        self.page.goto(self.base + path)
        if ready:
            expect(self.page.locator("#foot-model")).to_contain_text("snapshot")
        return self.page

    def allow(self, *statuses: int) -> None:
        """Refusals that a test provokes are no failures."""
        self.allowed_statuses |= set(statuses)

    def posted(self, path: str) -> list[Request]:
        return [request for request in self.asked if request.method == "POST" and path in request.url]

    def _console(self, message: ConsoleMessage) -> None:
        expected = any(f"status of {status}" in message.text for status in self.allowed_statuses)
        if message.type in ("error", "warning") and not expected:
            self.wrong.append(f"console: {message.text}")

    def _failed(self, request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # the page itself no longer wanted it
            self.wrong.append(f"failed: {request.url}")

    def _request(self, request: Request) -> None:
        self.asked.append(request)
        if not request.url.startswith((self.base, "blob:", "data:")):
            self.wrong.append(f"left the service: {request.url}")

    def _response(self, response: Response) -> None:
        if response.status >= 400 and response.status not in self.allowed_statuses:
            self.wrong.append(f"{response.status}: {response.url}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    with sync_playwright() as playwright:
        expect.set_options(timeout=1000 * PATIENCE_S)
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], timeout=1000 * PATIENCE_S
        )
        yield browser
        browser.close()


Visit = Callable[..., Watched]
Written = tuple[httpx.Client, str, bytes]


@pytest.fixture
def written(start: Start, real_index: Path, real_photo: Path, tmp_path: Path, wait: Wait) -> Written:
    """A service over an index to write to, a key that does, and a photo that is in it."""
    folder = shutil.copytree(real_index, tmp_path / "written")
    service = start(None, index=folder, device="cpu")
    key = KeyFile(folder / KEYS_FILE).create("writer", Role.WRITE)
    wait(lambda: service.get("/readyz").status_code == 200)
    return service, key, real_photo.read_bytes()


@pytest.fixture
def visit(browser: Browser, client: httpx.Client) -> Iterator[Visit]:
    """Look at a service, the fake index's if none is given, in a browser with options as keywords."""
    contexts: list[BrowserContext] = []
    pages: list[Watched] = []

    def visit(service: httpx.Client = client, **options: Any) -> Watched:
        context = browser.new_context(**{"viewport": DESK, "reduced_motion": "reduce", **options})
        context.set_default_timeout(1000 * PATIENCE_S)
        contexts.append(context)
        pages.append(Watched(context.new_page(), str(service.base_url).rstrip("/")))
        return pages[-1]

    yield visit
    for context in contexts:
        context.close()
    assert [wrong for watched in pages for wrong in watched.wrong] == []


@pytest.fixture
def red(make_photo: MakePhoto) -> FilePayload:
    """A red photo as a file that is chosen."""
    return {"name": "red wall.jpg", "mimeType": "image/jpeg", "buffer": make_photo("red")}


@pytest.fixture
def blue(make_photo: MakePhoto) -> FilePayload:
    return {"name": "blue.png", "mimeType": "image/png", "buffer": make_photo("blue", kind="PNG")}


def hand_over(page: Page, event: str, file: FilePayload) -> None:
    """Drop or paste a file, as a browser tells the page of it."""
    page.evaluate(
        """([event, name, type, data]) => {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type }));
            const options = { bubbles: true, cancelable: true };
            document.querySelector("main").dispatchEvent(event === "drop"
                ? new DragEvent("drop", { ...options, dataTransfer: transfer })
                : new ClipboardEvent("paste", { ...options, clipboardData: transfer }));
        }""",
        [event, file["name"], file["mimeType"], base64.b64encode(file["buffer"]).decode()],
    )


def eventually(page: Page, expression: str) -> None:
    """Wait until a JavaScript expression is true; Playwright's own needs eval."""
    deadline = time.monotonic() + PATIENCE_S
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(20)


def form_field(request: Request, name: str) -> str | None:
    """A field of a multipart body."""
    body = request.post_data_buffer or b""
    found = re.search(rb'name="%s"\r\n\r\n(.*?)\r\n' % name.encode(), body, re.DOTALL)
    return found[1].decode() if found else None


def problem(route: Route, status: int, detail: str, field: str | None = None) -> None:
    body = {"type": "urn:loci:problem:test", "title": "Refused", "status": status, "detail": detail}
    route.fulfill(status=status, json=body | ({"field": field} if field else {}))


def test_the_page_says_what_is_loaded(visit: Visit) -> None:
    page = visit().open()
    expect(page.locator("h1:visible")).to_have_text("Where was this taken?")
    expect(page.locator("#number-photos")).to_have_text("3")
    expect(page.locator("#number-places")).to_have_text("3")
    expect(page.locator("#number-dim")).to_have_text("3")
    expect(page.locator("#foot-model")).to_have_text("Model f00d, snapshot 01/000001")
    assert page.locator("#banner").is_hidden()


def test_a_chosen_photo_is_shown_beside_its_matches(visit: Visit, red: FilePayload) -> None:
    watched = visit()
    page = watched.open()
    page.set_input_files("#find-files", red)
    expect(page.locator(".match")).to_have_count(3)
    expect(page.locator(".match-name a")).to_have_text(["Place red", "Place blue", "Place green"])
    expect(page.locator("#summary-title")).to_have_text("Most like place red")
    expect(page.locator(".score").first).to_have_text("1.000")
    facts = page.locator("#facts > div")
    expect(facts.nth(0)).to_contain_text("52.000000, 0.250000give or take 13 m")
    expect(facts.nth(1)).to_contain_text("Not calibratedNot calibrated: 3 photos.")
    expect(facts.nth(2)).to_contain_text("decoding")
    expect(facts.nth(2)).to_contain_text("search 0.3 ms")
    expect(page.locator("#answer-map .pin")).to_have_count(2)  # blue has no position
    eventually(page, "[...document.images].filter((i) => i.offsetParent).every((i) => i.naturalWidth)")
    assert page.locator(".frame img").get_attribute("alt") == "Your photo red wall.jpg"
    assert len(watched.posted("/v1/query")) == 1


def test_nothing_jumps_while_an_answer_comes(visit: Visit, red: FilePayload) -> None:
    page = visit(reduced_motion="no-preference").open()
    page.evaluate(
        """() => { window.shift = 0; new PerformanceObserver((list) => {
            for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shift += entry.value;
        }).observe({ type: "layout-shift", buffered: true }); }"""
    )
    page.set_input_files("#find-files", red)
    expect(page.locator(".match")).to_have_count(3)
    eventually(page, "[...document.images].filter((i) => i.offsetParent).every((i) => i.naturalWidth)")
    assert page.evaluate("window.shift") < 0.05


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_photo_can_be_handed_over(visit: Visit, red: FilePayload, way: str) -> None:
    page = visit().open()
    hand_over(page, way, red)
    expect(page.locator(".match-name a").first).to_have_text("Place red")
    expect(page.get_by_alt_text("Your photo red wall.jpg")).to_be_visible()


def test_a_photo_of_the_answer_is_enlarged_beside_the_one_asked_about(visit: Visit, red: FilePayload) -> None:
    page = visit().open()
    page.set_input_files("#find-files", red)
    page.locator(".matches .thumb").first.click()
    expect(page.locator("#viewer")).to_be_visible()
    expect(page.locator("#viewer-title")).to_have_text("red.jpg")
    expect(page.locator("#viewer-caption")).to_have_text(
        "score 1.000 · 2024-05-01 10:00:00 · looking 90° E · 52.00000, 0.25000"
    )
    eventually(page, "document.querySelector('#viewer-image').naturalWidth === 800")  # turned upright
    eventually(page, "document.querySelector('#viewer-query img').naturalWidth === 96")
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator(".matches .thumb").first).to_be_focused()


ENDS = """() => [...document.querySelectorAll("#viewer-lines line")].map((line) => {
    const within = (image, x, y) => {
        const box = image.getBoundingClientRect();
        return [(x - box.left) / box.width, (y - box.top) / box.height];
    };
    const at = (name) => line[name].baseVal.value;
    const { left, top } = document.querySelector("#viewer-lines").getBoundingClientRect();
    return [
        ...within(document.querySelector("#viewer-query img"), left + at("x1"), top + at("y1")),
        ...within(document.querySelector("#viewer-image"), left + at("x2"), top + at("y2")),
    ];
})"""
"""Where lines end, as shares of the boxes that hold the pictures, which are larger than those."""


def letterboxed(page: Page, selector: str, x: float, y: float) -> list[float]:
    """Where a share of a picture is, as a share of the box that holds it."""
    width, height, natural_width, natural_height = page.evaluate(
        "(s) => { const i = document.querySelector(s); "
        "return [i.clientWidth, i.clientHeight, i.naturalWidth, i.naturalHeight]; }",
        selector,
    )
    scale = min(width / natural_width, height / natural_height)
    across, down = scale * natural_width / width, scale * natural_height / height
    return [0.5 + (x - 0.5) * across, 0.5 + (y - 0.5) * down]


@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
def test_lines_join_what_two_photos_share(
    visit: Visit, index: FakeIndex, red: FilePayload, viewport: dict[str, int]
) -> None:
    index.agreeing = 20
    page = visit(viewport=viewport).open()
    page.set_input_files("#find-files", red)
    expect(page.locator(".match-name").first).to_contain_text("20 matched features")
    for _ in range(2):  # opened again, it is the same
        page.locator(".matches .thumb").first.click()
        expect(page.locator("#viewer-caption")).to_contain_text("score 1.000 · 20 matched features · ")
        expect(page.locator("#viewer-lines line")).to_have_count(20)
        page.keyboard.press("Escape")
    page.locator(".matches .thumb").first.click()
    expect(page.locator("#viewer-lines line")).to_have_count(20)

    def joined() -> None:
        ends = page.evaluate(ENDS)
        for number, end in enumerate(ends):
            x = (number + 0.5) / 20
            query = letterboxed(page, "#viewer-query img", x, 0.25)
            photo = letterboxed(page, "#viewer-image", x, 0.75)
            assert end == pytest.approx([*query, *photo], abs=0.002)

    joined()
    page.set_viewport_size({"width": viewport["width"] - 60, "height": 700})
    page.wait_for_timeout(100)
    joined()
    assert page.locator("#viewer-lines circle").count() == 40
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_lines_are_switched_by_keyboard_and_stay_so(visit: Visit, index: FakeIndex, red: FilePayload) -> None:
    index.agreeing = 20
    page = visit(color_scheme="dark").open()
    page.set_input_files("#find-files", red)
    page.locator(".matches .thumb").first.press("Enter")
    toggle = page.get_by_role("button", name="Lines")
    expect(toggle).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("button", name="Close")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    expect(toggle).to_be_focused()
    page.keyboard.press("Space")
    expect(toggle).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#viewer-lines line")).to_have_count(0)
    page.keyboard.press("Escape")
    page.locator(".matches .thumb").nth(1).press("Enter")
    expect(page.locator("#viewer-title")).to_have_text("blue.jpg")
    expect(toggle).to_have_attribute("aria-pressed", "false")
    eventually(page, "document.querySelector('#viewer-image').complete")
    expect(page.locator("#viewer-lines line")).to_have_count(0)
    toggle.press("Enter")
    expect(page.locator("#viewer-lines line")).to_have_count(20)


def test_few_matches_are_drawn_only_when_asked_for(visit: Visit, index: FakeIndex, red: FilePayload) -> None:
    index.agreeing = 19
    page = visit().open()
    page.set_input_files("#find-files", red)
    page.locator(".matches .thumb").first.click()
    toggle = page.get_by_role("button", name="Lines")
    expect(toggle).to_have_attribute("aria-pressed", "false")
    eventually(page, "document.querySelector('#viewer-image').naturalWidth === 800")
    expect(page.locator("#viewer-lines line")).to_have_count(0)
    toggle.click()
    expect(page.locator("#viewer-lines line")).to_have_count(19)


def test_without_matches_there_is_nothing_to_switch(
    visit: Visit, index: FakeIndex, red: FilePayload, blue: FilePayload
) -> None:
    page = visit().open()
    page.set_input_files("#find-files", red)
    page.locator(".matches .thumb").first.click()
    expect(page.locator("#viewer")).to_be_visible()
    expect(page.locator("#viewer-toggle")).to_be_hidden()  # not verified
    page.keyboard.press("Escape")
    index.agreeing = 10
    page.set_input_files("#find-more", blue)
    expect(page.locator("#facts > div").nth(3)).to_contain_text("2 photos")
    page.locator(".matches .thumb").first.click()
    expect(page.locator("#viewer")).to_be_visible()
    expect(page.locator("#viewer-toggle")).to_be_hidden()  # a clip, of which no frame is shown
    expect(page.locator("#viewer-lines line")).to_have_count(0)


def test_several_photos_are_asked_about_as_a_clip(
    visit: Visit, network: Network, red: FilePayload, blue: FilePayload
) -> None:
    watched = visit()
    page = watched.open()
    page.set_input_files("#find-files", [red, blue])
    expect(page.locator("#facts > div").nth(3)).to_contain_text("2 photos")
    assert [request.url for request in watched.posted("/v1/query")] == [f"{watched.base}/v1/query/clip"]
    assert network.batches == [2]
    page.get_by_role("button", name="Remove blue.png").click()
    expect(page.locator("#facts > div")).to_have_count(3)
    assert [request.url for request in watched.posted("/v1/query")][1:] == [
        f"{watched.base}/v1/query?matches=true"
    ]
    assert network.batches == [2, 1]
    page.set_input_files("#find-more", blue)  # one at a time, as a phone's camera gives them
    expect(page.locator("#facts > div")).to_have_count(4)
    assert network.batches == [2, 1, 2]
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#answer-empty")).to_be_visible()
    assert len(watched.posted("/v1/query")) == 3


def test_filters_are_sent_by_the_interfaces_names(visit: Visit, red: FilePayload) -> None:
    watched = visit()
    page = watched.open()
    page.set_input_files("#find-files", red)
    expect(page.locator(".match")).to_have_count(3)
    page.locator("#filters summary").click()
    values = {
        "lat": "52.5",
        "lon": "-0.25",
        "radius_m": "150",
        "taken_after": "2024-05-01T10:00",
        "taken_before": "2024-06-01T10:00:30",
        "heading": "90",
        "heading_tolerance": "30",
        "place": "the red wall",
        "k": "2",
    }
    for name, value in values.items():
        page.locator(f"#filter-form [name={name}]").fill(value)
    expect(page.locator("#filter-count")).to_have_text("8 set")
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator(".match")).to_have_count(2)
    sent = dict(httpx.URL(watched.posted("/v1/query?")[1].url).params)
    assert sent == values | {"matches": "true"}
    page.get_by_role("button", name="Reset").click()
    expect(page.locator("#filter-count")).to_be_hidden()


def test_a_point_is_picked_on_the_map(visit: Visit) -> None:
    page = visit().open()
    page.locator("#filters summary").click()
    canvas = page.locator("#filter-picker .map")
    expect(canvas).to_be_visible()
    box = canvas.bounding_box()
    assert box
    canvas.click(position={"x": box["width"] / 2 + 60, "y": box["height"] / 2 + 40})
    lat, lon = (float(page.locator(f"#filter-form [name={name}]").input_value()) for name in ("lat", "lon"))
    assert 51.99 < lat < 52.0
    assert 0.25 < lon < 0.26
    page.get_by_role("button", name="take its centre").first.click()
    assert float(page.locator("#filter-form [name=lat]").input_value()) == pytest.approx(52, abs=1e-3)


def test_a_refused_field_is_named_and_focused(visit: Visit, red: FilePayload) -> None:
    watched = visit()
    watched.allow(422)
    page = watched.open()
    page.route("**/v1/query**", lambda route: problem(route, 422, "radius_m needs lat and lon", "radius_m"))
    page.set_input_files("#find-files", red)
    expect(page.get_by_role("alert")).to_have_text("RefusedRadius_m needs lat and lon.")
    expect(page.locator("[name=radius_m]")).to_be_focused()
    assert page.locator("[name=radius_m]").get_attribute("aria-invalid") == "true"


def test_client_error_has_the_services_sentence(visit: Visit) -> None:
    watched = visit()
    watched.allow(400, 415)
    page = watched.open()
    page.set_input_files("#find-files", {"name": "x.jpg", "mimeType": "image/jpeg", "buffer": b"rubbish"})
    expect(page.get_by_role("alert")).to_contain_text("Image cannot be decoded")
    expect(page.locator(".no-preview")).to_have_text("x.jpg: no preview in this browser")
    page.set_input_files("#find-files", {"name": "x.txt", "mimeType": "text/plain", "buffer": b"rubbish"})
    expect(page.get_by_role("alert")).to_contain_text("Not an image type")


def test_page_does_not_send_large_photos(start: Start, index: FakeIndex, visit: Visit) -> None:
    watched = visit(start(index, max_upload_mb=0.001))
    page = watched.open()
    page.set_input_files("#find-files", {"name": "x.jpg", "mimeType": "image/jpeg", "buffer": bytes(2_000)})
    expect(page.get_by_role("alert")).to_contain_text("X.jpg has 2 kB, more than the 1 kB")
    assert not watched.posted("/v1/query")


def test_an_overloaded_service_can_be_asked_again(visit: Visit, red: FilePayload) -> None:
    watched = visit()
    watched.allow(503)
    page = watched.open()
    page.route("**/v1/query**", lambda route: problem(route, 503, "64 images are waiting already"), times=1)
    page.set_input_files("#find-files", red)
    expect(page.get_by_role("alert")).to_contain_text("64 images are waiting already.")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".match")).to_have_count(3)
    assert page.get_by_role("alert").count() == 0


def test_unreachable_service_is_not_ready(visit: Visit, red: FilePayload) -> None:
    watched = visit()
    page = watched.open()
    page.route("**/v1/query**", lambda route: route.abort())
    page.set_input_files("#find-files", red)
    expect(page.get_by_role("alert")).to_contain_text("The service cannot be reached.")
    assert watched.wrong == [f"failed: {watched.base}/v1/query?matches=true"] + [
        wrong for wrong in watched.wrong if "ERR_FAILED" in wrong
    ]
    watched.wrong.clear()


def test_page_waits_for_the_index(start: Start, visit: Visit, tmp_path: Path, real_index: Path) -> None:
    folder = tmp_path / "later"
    service = start(None, index=folder, refresh_seconds=0.1, device="cpu")
    watched = visit(service)
    watched.allow(503)
    page = watched.open(ready=False)
    expect(page.locator("#banner")).to_contain_text("Not ready yet")
    expect(page.locator("#banner")).to_contain_text("later")
    shutil.copytree(real_index, tmp_path / "copy")
    (tmp_path / "copy").rename(folder)
    expect(page.locator("#number-photos")).to_have_text("12")
    expect(page.locator("#banner")).to_be_hidden()


def test_an_index_without_positions_needs_no_map(
    start: Start, visit: Visit, real_index: Path, real_photo: Path
) -> None:
    page = visit(start(Index.open(real_index, device="cpu"))).open()
    page.set_input_files("#find-files", real_photo)
    expect(page.locator(".match")).to_have_count(5)
    expect(page.locator("#facts > div").first).to_contain_text("Not knownthe photos found have none")
    expect(page.locator("#answer-map-card")).to_be_hidden()
    page.get_by_role("link", name="Places").click()
    expect(page.locator("#place-rows li")).to_have_count(12)
    expect(page.locator("#places-map-card")).to_be_hidden()


def test_places_are_browsed(visit: Visit) -> None:
    page = visit().open("/#places")
    expect(page.locator("#place-total")).to_have_text("3 places")
    expect(page.locator("#place-rows .row-name")).to_have_text(
        ["the red wall", "the green wall", "the blue wall"]
    )
    expect(page.locator("#place-rows li").nth(2)).to_contain_text("1 photo · no position")
    page.locator("#place-search").fill("GREEN")
    expect(page.locator("#place-rows .row-name")).to_have_text(["the green wall"])
    expect(page.locator("#place-total")).to_have_text("1 of 3 places")
    page.locator("#place-rows a").click()
    expect(page.locator("#place-title")).to_have_text("the green wall")
    assert page.url.endswith("#places/green")
    expect(page.locator("#place-rows a")).to_have_attribute("aria-current", "true")
    page.locator(".grid .thumb").click()
    expect(page.locator("#viewer-title")).to_have_text("green.jpg")
    expect(page.locator("#viewer-query")).to_be_hidden()
    page.get_by_role("button", name="Close").click()
    assert page.get_by_role("button", name="Delete green.jpg").count() == 0  # there is no key
    page.get_by_role("button", name="Search only here").click()
    expect(page.locator("#filter-form [name=place]")).to_have_value("green")


def test_page_opens_with_a_damaged_address(visit: Visit) -> None:
    page = visit().open("/#places/%E0%A4%A")
    expect(page.locator("#place-total")).to_have_text("3 places")


def test_without_storage_a_key_lasts_as_long_as_the_page(visit: Visit) -> None:
    watched = visit()
    watched.page.add_init_script(
        "Object.defineProperty(window, 'sessionStorage', { get() { throw new DOMException('no') } })"
    )
    page = watched.open()
    enter_key(page, "k3y")
    page.get_by_role("link", name="Places").click()
    expect(page.locator("#place-total")).to_have_text("3 places")
    (asked,) = [request for request in watched.asked if "/v1/places" in request.url]
    assert asked.headers["authorization"] == "Bearer k3y"


def test_an_unknown_place_is_a_sentence(visit: Visit) -> None:
    watched = visit()
    watched.allow(404)
    page = watched.open("/#places/pink")
    expect(page.get_by_role("alert")).to_have_text("Not foundNo photo pink in this index.")


def test_ten_thousand_places_stay_fast(
    start: Start, index: FakeIndex, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [Place(f"p{n}", None, 48 + (n % 100) / 100, 2 + (n // 100) / 100, 1, ()) for n in range(10_000)]
    monkeypatch.setattr(index, "places", lambda: places)
    page = visit(start(index)).open("/#places")
    expect(page.locator("#place-total")).to_have_text("10,000 places")
    expect(page.locator("#place-rows li")).to_have_count(100)
    page.get_by_role("button", name="Show more").click()
    expect(page.locator("#place-rows li")).to_have_count(200)
    drawing = page.evaluate(
        """async () => {
            const zoom = document.querySelector("#places-map .leaflet-control-zoom-in");
            const started = performance.now();
            for (let n = 0; n < 3; n++) {
                zoom.click();
                await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
            }
            return (performance.now() - started) / 3;
        }"""
    )
    assert drawing < 1000  # milliseconds a zoom; 20 to 70 on a busy processor
    started = time.monotonic()
    page.locator("#place-search").fill("p9999")
    expect(page.locator("#place-rows li")).to_have_count(1)
    assert time.monotonic() - started < 5


def test_the_circle_of_a_place_opens_it(
    start: Start, index: FakeIndex, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "places", lambda: [Place("red", "the red wall", 52.0, 0.25, 1, ())])
    page = visit(start(index)).open("/#places")
    expect(page.locator("#place-total")).to_have_text("1 place")
    page.locator("#places-map").click()  # alone, it lies in the middle
    expect(page.locator("#place-title")).to_have_text("the red wall")


def enter_key(page: Page, key: str) -> None:
    page.locator("#key-button").click()
    page.locator("#key-input").fill(key)
    page.get_by_role("button", name="Use this key").click()
    expect(page.locator("#key-button")).to_have_text("Key in use" if key else "Key")


def test_photos_are_added_with_a_key(visit: Visit, written: Written, red: FilePayload) -> None:
    service, key, photo = written
    stored: FilePayload = {"name": "old.png", "mimeType": "image/png", "buffer": photo}
    watched = visit(service)
    page = watched.open("/#add")
    expect(page.locator("#add-send")).to_be_disabled()
    enter_key(page, key)
    page.set_input_files("#add-files", red)
    page.set_input_files("#add-files", stored)
    for name, value in {"lat": "52", "lon": "0.25", "heading": "90", "place": "a wall"}.items():
        page.locator(f"#add-form [name={name}]").fill(value)
    page.get_by_role("button", name="Add 2 photos").click()
    expect(page.locator("#add-results li")).to_have_count(2)
    expect(page.locator("#add-results")).to_contain_text("red wall.jpgAdded at 52.00000, 0.25000.")
    expect(page.locator("#add-results")).to_contain_text("Was in the index already; nothing was changed.")
    sent = watched.posted("/v1/photos")
    assert [request.headers["authorization"] for request in sent] == [f"Bearer {key}"] * 2
    answer = service.post("/v1/query", files={"image": red["buffer"]}, params={"place": "a wall"}).json()
    (place,) = answer["places"]
    (added,) = place["photos"]
    assert [added[name] for name in ("path", "lat", "lon", "heading", "taken_at")] == [
        "posted/red wall.jpg",
        52.0,
        0.25,
        90.0,
        None,
    ]
    assert service.get("/v1/places.geojson").json()["features"][0]["properties"]["name"] == "a wall"
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 1, ""]
    expect(page.locator("#add-send")).to_be_disabled()


def test_a_refused_photo_stays_to_be_sent_again(visit: Visit, written: Written, red: FilePayload) -> None:
    service, key, _ = written
    watched = visit(service)
    watched.allow(401)
    page = watched.open("/#add")
    page.set_input_files("#add-files", red)
    page.get_by_role("button", name="Add 1 photo").click()
    expect(page.get_by_role("alert")).to_contain_text("This needs a key for writing")
    page.get_by_role("alert").get_by_role("button", name="Enter a key").click()
    page.locator("#key-input").fill(key)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Add 1 photo").click()
    expect(page.locator("#add-results li")).to_have_count(1)
    page.locator("#key-button").click()
    page.get_by_role("button", name="Forget it").click()
    eventually(page, "sessionStorage.length === 0")


def test_a_photo_is_deleted_after_a_question(visit: Visit, written: Written, red: FilePayload) -> None:
    service, key, _ = written
    added = service.post(
        "/v1/photos",
        files={"image": red["buffer"]},
        data={"name": "red.jpg", "place": "a wall"},
        headers={"Authorization": f"Bearer {key}"},
    ).json()["id"]
    (place,) = [one for one in service.get("/v1/places").json()["places"] if one["name"] == "a wall"]
    page = visit(service).open(f"/#places/{place['id']}")
    enter_key(page, key)
    page.get_by_role("button", name="Delete red.jpg").click()
    page.get_by_role("button", name="Keep it").click()
    assert service.get(f"/v1/photos/{added}").status_code == 200
    page.get_by_role("button", name="Delete red.jpg").click()
    expect(page.locator("#confirm-text")).to_contain_text("red.jpg is taken out of the index")
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator(".empty-note")).to_be_visible()  # it was the place's only photo
    assert service.get(f"/v1/photos/{added}").status_code == 404


def test_reading_that_needs_a_key_asks_for_one(
    visit: Visit, start: Start, index: FakeIndex, tmp_path: Path
) -> None:
    file = tmp_path / "keys.json"
    key = KeyFile(file).create("reader", Role.READ)
    watched = visit(start(index, keys=file))
    watched.allow(401)
    page = watched.open(ready=False)
    expect(page.locator("#banner")).to_contain_text("This needs a key for reading")
    page.locator("#banner").get_by_role("button", name="Enter a key").click()
    page.locator("#key-input").fill(key)
    page.keyboard.press("Enter")
    expect(page.locator("#number-photos")).to_have_text("3")
    expect(page.locator("#banner")).to_be_hidden()
    page.get_by_role("link", name="Places").click()
    page.locator("#place-rows a").first.click()
    eventually(page, "document.querySelector('.grid img')?.naturalWidth > 0")
    (asked,) = [request for request in watched.asked if request.url.endswith("/thumbnail")]
    assert asked.headers["authorization"] == f"Bearer {key}"
    page.locator(".grid img").first.click()
    eventually(page, "document.querySelector('#viewer-image').naturalWidth === 800")
    assert all("key" not in request.url and key not in request.url for request in watched.asked)


def test_everything_can_be_done_by_keyboard(visit: Visit, red: FilePayload) -> None:
    page = visit().open()
    page.keyboard.press("Tab")
    expect(page.locator("#skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#find-files")).to_be_focused()
    outline = "getComputedStyle(document.querySelector('label[for=find-files]')).outlineStyle"
    assert page.evaluate(outline) == "solid"  # the label shows the focus of the field that it stands for
    page.evaluate(
        """() => document.activeElement.addEventListener("click", (event) => {
            event.preventDefault();
            window.asked = true;
        }, { once: true })"""
    )
    page.keyboard.press("Enter")
    eventually(page, "window.asked")  # the system's own dialog would open
    page.set_input_files("#find-files", red)
    expect(page.locator("#summary-title")).to_be_focused()
    for _ in range(40):
        if page.evaluate("document.activeElement.className") == "thumb":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#viewer")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".matches .thumb").first).to_be_focused()
    names = page.evaluate(
        """[...document.querySelectorAll("button, a, input")].filter((node) => node.offsetParent
            && !(node.getAttribute("aria-label") || node.textContent.trim() || node.labels?.length
                || node.title)).map((node) => node.outerHTML)"""
    )
    assert names == []  # a screen reader can say what each is


@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
def test_nothing_is_wider_than_the_screen(visit: Visit, red: FilePayload, viewport: dict[str, int]) -> None:
    phone = viewport is PHONE
    watched = visit(viewport=viewport, is_mobile=phone, has_touch=phone)
    for path in ("/", "/#places", "/#places/red", "/#add"):
        page = watched.open(path)
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
    page = watched.open("/?again")
    page.set_input_files("#find-files", red)
    expect(page.locator(".match")).to_have_count(3)
    page.locator("#filters summary").click()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    camera = page.locator("label[for=find-camera]")
    assert camera.is_visible() is phone
    assert page.locator("#find-camera").get_attribute("capture") == "environment"


def test_dark_mode_is_dark(visit: Visit, red: FilePayload) -> None:
    lightness = []
    for scheme in ("light", "dark"):
        page = visit(color_scheme=scheme).open()
        page.set_input_files("#find-files", red)
        expect(page.locator(".match")).to_have_count(3)
        colours = [
            page.evaluate(
                "(s) => getComputedStyle(document.querySelector(s)).backgroundColor.match(/\\d+/g)",
                selector,
            )
            for selector in ("body", ".card", ".map", ".bar")
        ]
        lightness.append([sum(map(int, colour[:3])) / 3 for colour in colours])
    light, dark = lightness
    assert min(light) > 200
    assert max(dark) < 60


def test_names_are_shown_as_text(
    start: Start, index: FakeIndex, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "<img src=x onerror=alert(1)>"
    evil = dataclasses.replace(index.place("red"), name=name)
    monkeypatch.setattr(index, "place", lambda _id: evil)
    monkeypatch.setattr(index, "places", lambda: [evil])
    page = visit(start(index)).open("/#places/red")
    expect(page.locator("#place-title")).to_have_text(name)
    expect(page.locator("#place-rows .row-name")).to_have_text(name)


def test_tiles_come_from_the_configured_origin(
    start: Start, index: FakeIndex, visit: Visit, make_photo: MakePhoto
) -> None:
    tiles = "https://tiles.example/{z}/{x}/{y}.png"
    watched = visit(start(index, map_tiles=tiles, map_attribution="© the tile makers"))
    page = watched.page
    got: list[str] = []

    def tile(route: Route) -> None:
        got.append(route.request.url)
        route.fulfill(body=make_photo(size=(256, 256), kind="PNG"), content_type="image/png")

    page.route("https://tiles.example/**", tile)
    watched.open("/#places")
    expect(page.locator(".leaflet-tile-loaded").first).to_be_visible()
    expect(page.locator(".attribution")).to_have_text("© the tile makers")
    assert all(re.fullmatch(r"https://tiles\.example/\d+/\d+/\d+\.png", url) for url in got)
    watched.wrong = [
        wrong for wrong in watched.wrong if not wrong.startswith("left the service: https://tiles.")
    ]


POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:{tiles}; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def test_the_policy_allows_the_page_its_own_files_only(start: Start, index: FakeIndex) -> None:
    without = start(index).get("/")
    assert without.headers["content-security-policy"] == POLICY.format(tiles="")
    with_tiles = start(index, map_tiles="https://tiles.example:8443/{z}/{x}/{y}.png").get("/page/app.js")
    assert with_tiles.headers["content-security-policy"] == POLICY.format(tiles=" https://tiles.example:8443")


def test_the_page_has_nothing_inline_and_nothing_from_elsewhere(client: httpx.Client) -> None:
    html = client.get("/").text
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]* src=)|javascript:|//[a-z]", html)
    for path in re.findall(r'(?:src|href)="((?:page|docs|v1)[^"]*)"', html):
        assert client.get("/" + path).status_code == 200, path


def test_the_pages_own_modules_name_ids_that_it_has(client: httpx.Client) -> None:
    ids = set(re.findall(r'id="([^"]+)"', client.get("/").text)) | {"place-title", "place-error"}
    folder = Path(__file__).parents[3] / "service" / "page"
    for module in folder.glob("*.js"):
        text = module.read_text(encoding="utf-8")
        assert set(re.findall(r'byId\("([^"]+)"\)', text)) <= ids, module.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
        for other in re.findall(r'from "\./([^"]+)"', text):
            assert client.get(f"/page/{other}").headers["content-type"] == "text/javascript; charset=utf-8"


def test_leaflets_pictures_are_served_where_its_style_looks(client: httpx.Client) -> None:
    style = client.get("/page/leaflet/leaflet.css").text
    pictures = re.findall(r"url\((images/[^)]+)\)", style)
    assert len(pictures) == 3
    for picture in pictures:
        assert client.get(f"/page/leaflet/{picture}").headers["content-type"] == "image/png"


def test_an_unchanged_file_is_not_sent_twice(client: httpx.Client) -> None:
    first = client.get("/page/app.js")
    again = client.get("/page/app.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["nothing.js", "assets.py", "../settings.py", "%2e%2e/settings.py", ""])
def test_only_page_files_are_served(
    client: httpx.Client, problem: Callable[..., dict[str, Any]], name: str
) -> None:
    problem(client.get(f"/page/{name}"), 404)
