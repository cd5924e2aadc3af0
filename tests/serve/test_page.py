"""The demo page in a headless Chromium, before a real server on loopback."""

import base64
import json
import os
import re
import shutil
import subprocess
from contextlib import ExitStack

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from serve.loopback import serve_on_loopback

from raycap.data.images import decode_image
from raycap.models.decoding import Decoding
from raycap.models.refinement import Refinement
from raycap.predictor import CaptionPredictor
from raycap.serve.guard.keys import KeyRing, Keys
from raycap.serve.page import mount_page
from raycap.serve.stages.weights import Routing

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")

MAX_NEW_TOKENS = 10
KEY = "a-visitors-s3cret-key"

# What the page cannot know is recorded where it happens: what is sent, and each state of a live region.
RECORDER = """
window.sent = [];
window.received = [];
window.states = {plain: [], gated: []};
window.violations = [];
window.shift = 0;
document.addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));
new PerformanceObserver((list) => list.getEntries().forEach((entry) => { window.shift += entry.value; }))
    .observe({type: "layout-shift", buffered: true});
const realFetch = window.fetch;
window.fetch = async (url, options) => {
    if (options?.body) window.sent.push(Object.fromEntries([...options.body].filter(([name]) => name !== "file")));
    const response = await realFetch(url, options);
    response.clone().text().then((text) => window.received.push(text), () => {});
    return response;
};
document.addEventListener("DOMContentLoaded", () => {
    for (const [id, states] of Object.entries(window.states)) {
        const observer = new MutationObserver((changes) => changes.forEach((change) =>
            change.addedNodes.forEach((node) => states.push(node.textContent))));
        observer.observe(document.querySelector(`#${id} [aria-live]`), {childList: true});
    }
});
"""

DROP = """(stage, [bytes, name]) => {
    const file = new File([Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0))], name);
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(file);
    for (const kind of ["dragenter", "dragover", "drop"])
        stage.dispatchEvent(new DragEvent(kind, {dataTransfer, bubbles: true, cancelable: true}));
}"""


@pytest.fixture(scope="module")
def picture(models, files):
    """A file whose captions have several words, which of random weights not every one has."""
    predictor = CaptionPredictor.from_pretrained(str(models / "demo/blip/model"), str(models / "demo/rbm/model"))
    images, decoding = [decode_image(file) for file in files], Decoding(max_new_tokens=MAX_NEW_TOKENS)
    captions = zip(*(predictor.caption(images, decoding, Refinement(gate=gate)) for gate in (0, 1)), strict=True)
    return next(file for file, both in zip(files, captions, strict=True) if min(len(c.split()) for c in both) > 2)


@pytest.fixture(scope="module")
def serve(models, lstm):
    """Starts the interface on loopback, around all stages, and gives its address; the same arguments give the same."""
    model = {"model": str(models / "demo/blip/model"), "decoding": {"max_new_tokens": MAX_NEW_TOKENS}}
    refined = model | {"rbm": str(models / "demo/rbm/model")}
    running = {}
    with ExitStack() as servers:

        def start(api_key=None, names=("demo",)):
            if (api_key, names) not in running:
                others = {"bare": model | {"traffic": 0}, "lstm": model | {"model": lstm, "traffic": 0}}
                routing = {name: others.get(name, refined) for name in names}
                keys = None if api_key is None else key_ring(api_key)
                url = servers.enter_context(serve_on_loopback(Routing.model_validate({"models": routing}), keys=keys))
                running[api_key, names] = f"{url}/"
            return running[api_key, names]

        yield start


def key_ring(key):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYCAP_TEST_KEYS", f"visitor: {key}")
        return KeyRing(Keys(environment="RAYCAP_TEST_KEYS"))


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = started.chromium.launch(executable_path=BROWSER, args=[*sandbox, "--disable-dev-shm-usage"])
        yield browser
        browser.close()


class Visit:
    """A visitor's page, and all that it asked for and complained about."""

    def __init__(self, page, address):
        self.page, self.address, self.requests, self.complaints = page, address, [], []
        page.set_default_timeout(10_000)
        page.add_init_script(RECORDER)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda said: said.type in ("error", "warning") and self.complaints.append(said.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        # From the start: a dialog that opens before this is known to the browser would be a real one.
        page.on("filechooser", lambda chooser: None)
        page.goto(address)

    def drop(self, data, name="photo.png"):
        self.page.locator("#stage").evaluate(DROP, [base64.b64encode(data).decode(), name])

    def settled(self):
        """Both captions are there, whole."""
        for card in ("#plain", "#gated"):
            expect(self.page.locator(f"{card}.stale")).to_have_count(0)
            expect(self.page.locator(f"{card} [aria-busy=true]")).to_have_count(0)
            expect(self.page.locator(f"{card} .facts")).to_contain_text("token")

    def recorded(self, name):
        return self.page.evaluate(f"window.{name}")

    def maps(self, gate):
        """The maps that came with the caption of this gate."""
        lines = [line for text in self.recorded("received") for line in text.split("\n") if '"usage"' in line]
        answers = [json.loads(line.removeprefix("data: ")) for line in lines]
        return next(
            answer["attention"]["maps"]
            for answer in answers
            if answer["attention"] and answer["refinement"]["gate"] == gate
        )

    def text(self, card):
        return self.page.locator(f"#{card} .caption").inner_text()


@pytest.fixture
def visit(browser, serve):
    contexts = []

    def open_page(width=1280, height=860, api=None, **context):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **context))
        return Visit(contexts[-1].new_page(), serve(**(api or {})))

    yield open_page
    for context in contexts:
        context.close()


@in_browser
def test_a_dropped_picture_is_captioned_word_by_word_without_and_with_the_rbm(visit, picture):
    visitor = visit()
    visitor.drop(picture)
    visitor.settled()
    for card in ("plain", "gated"):
        pieces = [state for state in visitor.recorded("states")[card] if state]
        growing = {state for state in pieces if visitor.text(card).startswith(state)}
        assert len(growing) >= 2, pieces
        assert len(visitor.text(card).split()) > 1
    assert [fields["gate"] for fields in visitor.recorded("sent")] == ["0", "1"]
    expect(visitor.page.locator("#image")).to_be_visible()
    expect(visitor.page.locator("#gated .facts")).to_contain_text(re.compile(r"encode[r]? [\d.]+ ms"))
    expect(visitor.page.locator("#verdict")).to_contain_text("RBM")


@in_browser
def test_the_slider_stops_the_request_in_flight_and_asks_again_with_its_gate(visit, picture):
    visitor = visit()
    visitor.drop(picture)
    visitor.settled()
    page, stopped = visitor.page, []
    page.on("requestfailed", lambda request: stopped.append((request.url, request.failure)))
    page.route("**/v1/caption", lambda route: None)  # never answered
    with page.expect_request("**/v1/caption"):
        page.locator("#gate").fill("0.5")
    expect(page.locator("#gated")).to_have_class("card stale")
    page.unroute("**/v1/caption")
    with page.expect_event("requestfailed"):
        page.locator("#gate").fill("0")
    visitor.settled()
    assert stopped == [(f"{visitor.address}v1/caption", "net::ERR_ABORTED")]
    expect(page.locator("#gated h2")).to_contain_text("gate 0.00")
    assert visitor.text("gated") == visitor.text("plain")
    expect(page.locator("#verdict")).to_contain_text("Gate 0 leaves the RBM out")
    page.locator("#gate").fill("1")
    page.get_by_label("One pass more").click()
    expect(page.locator("#gated h2")).to_contain_text("gate 1.00, 2 passes")
    visitor.settled()
    # The two moves lie within one pause, and the caption without the RBM is not asked for again.
    asked = [(fields["gate"], fields.get("passes")) for fields in visitor.recorded("sent")]
    assert asked == [("0", None), ("1", "1"), ("0.5", "1"), ("0", "1"), ("1", "2")]


@in_browser
def test_pointing_at_a_word_lays_its_map_over_the_picture(visit, picture):
    visitor = visit()
    page = visitor.page
    page.locator("#explain").check()
    visitor.drop(picture)
    visitor.settled()
    chips, overlay = page.locator("#gated button.word"), page.locator("#heat")
    maps = visitor.maps(gate=1)
    assert len(set(maps)) == chips.count()
    expect(overlay).to_be_hidden()
    for index in (0, 2):
        chips.nth(index).hover()
        expect(overlay).to_be_visible()
        expect(overlay).to_have_attribute("src", maps[index])
        assert overlay.bounding_box() == page.locator("#image").bounding_box()
    page.locator("h1").hover()
    expect(overlay).to_be_hidden()
    chips.nth(1).focus()
    expect(overlay).to_have_attribute("src", maps[1])
    page.keyboard.press("Escape")
    expect(overlay).to_be_hidden()
    expect(page.get_by_role("link", name="All maps in one figure")).to_have_attribute(
        "href", re.compile("^data:image/png")
    )


@in_browser
def test_a_finger_keeps_the_map_of_the_word_it_tapped(visit, picture):
    visitor = visit(width=360, height=740, has_touch=True, is_mobile=True)
    visitor.page.locator("#explain").tap()
    visitor.drop(picture)
    visitor.settled()
    visitor.page.locator("#gated button.word").nth(1).tap()
    expect(visitor.page.locator("#heat")).to_have_attribute("src", visitor.maps(gate=1)[1])
    expect(visitor.page.locator("#heat")).to_be_visible()
    assert visitor.page.get_by_label("Take a photo").first.get_attribute("capture") == "environment"


@in_browser
def test_a_bad_file_shows_the_servers_own_line(visit, picture):
    visitor = visit()
    visitor.drop(b"no image", "notes.txt")
    expect(visitor.page.get_by_role("alert")).to_be_visible()
    expect(visitor.page.locator("#error-text")).to_have_text(
        "file: the file is empty or none of JPEG, PNG, WEBP, GIF, BMP, TIFF; send a whole JPEG, PNG or WebP file"
    )
    expect(visitor.page.get_by_role("button", name="Try again")).to_be_hidden()
    expect(visitor.page.locator("#unseen")).to_be_visible()
    visitor.drop(picture)
    visitor.settled()
    expect(visitor.page.get_by_role("alert")).to_be_hidden()


@in_browser
@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (
            'event: error\r\ndata: {"error": {"type": "overloaded", "message": "too much to do"}}\r\n\r\n',
            "too much to do",
        ),
        ("", "The connection ended before the caption was whole; try again."),
    ],
)
def test_a_caption_that_breaks_off_is_not_shown_as_whole(visit, picture, rest, message):
    visitor = visit()
    page = visitor.page
    body = 'data: {"delta": "a red"}\r\n\r\n' + rest
    page.route("**/v1/caption", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    visitor.drop(picture)
    expect(page.locator("#error-text")).to_have_text(message)
    expect(page.locator("#gated .caption")).to_have_text("No caption.")
    page.unroute("**/v1/caption")
    page.get_by_role("button", name="Try again").click()
    visitor.settled()


@in_browser
def test_a_refused_option_is_marked_and_can_be_mended(visit, picture):
    visitor = visit()
    visitor.drop(picture)
    visitor.settled()
    visitor.page.locator("#options summary").click()
    beams = visitor.page.get_by_label("Beams")
    beams.fill("9")
    expect(visitor.page.get_by_role("alert")).to_contain_text("num_beams = 9")
    expect(beams).to_have_attribute("aria-invalid", "true")
    beams.fill("2")
    visitor.settled()
    expect(beams).to_have_attribute("aria-invalid", "false")
    assert visitor.recorded("sent")[-1]["num_beams"] == "2"


@in_browser
def test_a_prompt_begins_both_captions_and_has_no_map(visit, picture):
    visitor = visit()
    page = visitor.page
    page.locator("#options summary").click()
    page.get_by_label("Begins with").fill("a red circle")
    page.locator("#explain").check()
    visitor.drop(picture)
    visitor.settled()
    for card in ("plain", "gated"):
        assert visitor.text(card).startswith("a red circle")
        chips = " ".join(page.locator(f"#{card} button.word").all_inner_texts())
        assert visitor.text(card).removeprefix("a red circle").lstrip() == chips


@in_browser
def test_a_server_that_asks_for_a_key_gets_it_and_forgets_it_with_the_tab(visit, picture):
    visitor = visit(api={"api_key": KEY})
    page = visitor.page
    key = page.get_by_label("API key")
    expect(key).to_be_focused()
    expect(page.get_by_role("alert")).to_contain_text("Authorization: Bearer KEY")
    key.fill("wrong")
    key.press("Enter")
    expect(key).to_be_focused()
    visitor.drop(picture)
    expect(page.get_by_role("alert")).to_contain_text("unknown key")
    key.fill(KEY)
    key.press("Enter")
    expect(key).to_be_hidden()
    visitor.settled()
    assert page.evaluate("() => localStorage.length") == 0
    command = page.locator("#curl").text_content()
    assert "$RAYCAP_API_KEY" in command
    assert KEY not in command
    assert "key" not in visit().page.locator("#curl").text_content().lower(), "where none is asked for"


def ask_without_rbm(visitor, picture, model):
    """Caption the picture, then choose a model that has no RBM; what was sent to that."""
    visitor.drop(picture)
    visitor.settled()
    visitor.page.get_by_label("Model").select_option(model)
    expect(visitor.page.locator("#refinement")).to_be_hidden()
    expect(visitor.page.locator("#verdict")).to_have_text("This model has no RBM.")
    fields = visitor.recorded("sent")[-1]
    assert fields["model"] == model
    return fields


@in_browser
def test_an_lstm_captioner_is_not_asked_to_continue_a_text(visit, picture):
    visitor = visit(api={"names": ("demo", "lstm")})
    page = visitor.page
    page.locator("#options").evaluate("options => options.open = true")
    page.get_by_label("Begins with").fill("a red")
    fields = ask_without_rbm(visitor, picture, "lstm")
    expect(page.get_by_label("Begins with")).to_be_hidden()
    assert "prompt" not in fields
    page.get_by_label("Model").select_option("demo")
    expect(page.get_by_label("Begins with")).to_have_value("a red")


@in_browser
def test_a_model_without_an_rbm_has_neither_gate_nor_second_caption(visit, picture):
    alone = visit()
    expect(alone.page.locator("#model")).to_be_hidden()
    visitor = visit(api={"names": ("demo", "bare")})
    page = visitor.page
    fields = ask_without_rbm(visitor, picture, "bare")
    expect(page.locator("#gated")).to_be_hidden()
    assert not {"gate", "passes"} & set(fields)
    page.get_by_label("Model").select_option("demo")
    visitor.settled()


@in_browser
def test_the_browser_has_nothing_to_complain_of_and_asks_nobody_else(visit, picture):
    visitor = visit()
    page = visitor.page
    page.locator("#explain").check()
    visitor.drop(picture)
    visitor.settled()
    page.locator("#gated button.word").first.hover()
    expect(page.locator("#heat")).to_be_visible()
    page.get_by_role("button", name="Try a drawing").click()
    expect(page.locator("#name")).to_have_text("drawing.png")
    visitor.settled()
    assert visitor.complaints == []
    assert visitor.recorded("violations") == []
    elsewhere = [url for url in visitor.requests if not url.startswith((visitor.address, "data:", "blob:"))]
    assert elsewhere == []
    # The policy would not let it, either.
    page.evaluate("() => { document.body.appendChild(new Image()).src = 'http://127.0.0.1:9/x.png'; }")
    page.wait_for_function("() => window.violations.length === 1")


@in_browser
@pytest.mark.parametrize(("width", "height"), [(1280, 860), (800, 900), (360, 740)])
def test_nothing_moves_as_an_answer_comes_and_nothing_is_wider_than_the_window(visit, picture, width, height):
    visitor = visit(width, height)
    page = visitor.page
    visitor.drop(picture)
    visitor.settled()
    page.locator("#gate").fill("0.3")
    visitor.settled()
    # A tenth of what web.dev's "Core Web Vitals" call good.
    assert visitor.recorded("shift") < 0.01
    page.locator("#options summary").click()
    page.get_by_text("This request as a command").click()
    assert page.evaluate("() => document.documentElement.scrollWidth") == width


CONTRAST = """() => {
    const light = (colour) => {
        const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255)
            .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const back = (node) => {
        const colour = getComputedStyle(node).backgroundColor;
        return colour === "rgba(0, 0, 0, 0)" ? back(node.parentElement) : colour;
    };
    const faint = [];
    for (const node of document.querySelectorAll("body *")) {
        const said = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
        if (!said || !node.checkVisibility() || node.disabled) continue;
        const [a, b] = [light(getComputedStyle(node).color), light(back(node))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) faint.push(`${node.textContent}: ${(a + 0.05) / (b + 0.05)}`);
    }
    return faint;
}"""


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read_in_both_schemes(visit, picture, scheme):
    visitor = visit(color_scheme=scheme, reduced_motion="reduce")
    page = visitor.page
    page.locator("#explain").check()
    page.locator("#options summary").click()
    page.get_by_text("This request as a command").click()
    visitor.drop(picture)
    visitor.settled()
    page.locator("#gated button.word").first.hover()
    dark = page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 27)"
    assert dark == (scheme == "dark")
    assert page.evaluate(CONTRAST) == []
    visitor.drop(b"no image")
    expect(page.get_by_role("alert")).to_be_visible()
    assert page.evaluate(CONTRAST) == []


@in_browser
def test_everything_can_be_done_with_the_keyboard(visit, picture):
    visitor = visit()
    page = visitor.page

    def tab_to(identifier):
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("() => document.activeElement.id || document.activeElement.classList[0]") == identifier:
                return
        raise AssertionError(f"{identifier} is not reached by Tab")

    tab_to("file")
    assert page.locator("#stage").evaluate("(node) => getComputedStyle(node).outlineStyle") == "solid"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files({"name": "a b.png", "mimeType": "image/png", "buffer": picture})
    visitor.settled()
    tab_to("gate")
    page.keyboard.press("Home")
    expect(page.locator("#gated h2")).to_contain_text("gate 0.00")
    visitor.settled()
    tab_to("explain")
    page.keyboard.press("Space")
    visitor.settled()
    page.locator("h1").click()  # Tab begins again at the top
    tab_to("word")
    expect(page.locator("#heat")).to_have_attribute("src", visitor.maps(gate=0)[0])
    unnamed = "() => [...document.querySelectorAll('input, button, select')].filter((node) => node.checkVisibility() \
        && !node.ariaLabel && !node.labels?.length && !node.textContent.trim()).map((node) => node.id)"
    assert page.evaluate(unnamed) == []


@in_browser
def test_a_picture_can_be_pasted(visit, picture):
    visitor = visit()
    paste = DROP.split("for (const kind")[0] + (
        "document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: dataTransfer, bubbles: true})); }"
    )
    visitor.page.locator("#stage").evaluate(paste, [base64.b64encode(picture).decode(), "pasted.png"])
    expect(visitor.page.locator("#name")).to_have_text("pasted.png")
    visitor.settled()


@in_browser
def test_the_command_shown_gives_the_caption_shown(visit, picture, tmp_path):
    visitor = visit()
    page = visitor.page
    page.locator("#options summary").click()
    page.get_by_label("Begins with").fill("@it's")
    name = "it's; a, b.png"
    visitor.drop(picture, name)
    visitor.settled()
    (tmp_path / name).write_bytes(picture)
    command = page.locator("#curl").text_content()
    ran = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(ran.stdout)["caption"] == visitor.text("gated")
    page.get_by_text("This request as a command").click()
    page.get_by_role("button", name="Copy").click()
    expect(page.locator("#copied")).to_have_text(re.compile("Copied|Selected"))
    assert page.evaluate("() => getSelection().toString()").strip() == command


def test_the_files_are_public_typed_and_under_the_strict_policy():
    api = FastAPI()
    mount_page(api)
    client = TestClient(api)
    for path, kind in (("/", "html"), ("/page.css", "css"), ("/page.js", "javascript"), ("/client.js", "javascript")):
        answer = client.get(path)
        assert answer.status_code == client.head(path).status_code == 200
        assert answer.headers["content-type"] == f"text/{kind}; charset=utf-8"
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:;")
        assert "unsafe" not in policy
    assert client.get("/openapi.json").json()["paths"] == {}
