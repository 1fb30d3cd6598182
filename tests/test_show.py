"""What a file shows at its timesteps: as a page in a browser, and as a contact sheet."""

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser
from click.testing import CliRunner
from PIL import Image
from tiny import TIMESTEPS

from diffcodec import decode, encode, load_model
from diffcodec.cli.program import cli
from diffcodec.codec import decoding, tiles, timesteps
from diffcodec.codec.estimates import expected_bytes
from diffcodec.container.reader import parse
from diffcodec.errors import CorruptError, LimitError
from diffcodec.images import fallback
from diffcodec.images.modes import psnr
from diffcodec.limits import Limits
from diffcodec.models.file import model_info
from diffcodec.models.model import Model
from diffcodec.viewing.show import (
    LARGEST_SIDE,
    MARGIN,
    OTHER_QUALITIES,
    PANEL_SIDES,
    Preview,
    contact_sheet,
    other_curves,
    page,
    previews,
)

LAST = TIMESTEPS["fast"]


def picture(size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Image.Image:
    y, x = np.mgrid[: size[1], : size[0]]
    waves = [np.sin(x / (5 + c) + c) + np.cos(y / (7 - c)) for c in range(3)]
    rgb = np.clip(128 + 50 * np.stack(waves, -1), 0, 255).astype(np.uint8)
    return Image.fromarray(rgb).convert(mode)


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return load_model(tiny)


# --- previews -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("chain_only")
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_previews_of_a_plain_file(model: Model, mode: str) -> None:
    image = picture(mode=mode)
    data = encode(image, model, "fast")
    shown = previews(data, model)
    assert [preview.timestep for preview in shown] == list(range(LAST, -1, -1))
    for preview in shown:
        assert preview.image.tobytes() == decode(data, preview.timestep, model).tobytes()
        assert preview.psnr == psnr(preview.image, image)
    sizes = [preview.size for preview in shown]
    assert sizes == sorted(sizes) and sizes[-1] == len(data)
    marks = timesteps.measure_marks(data, model).tiles[0].marks
    payload = len(parse(data).tiles[0].payload)
    assert [len(data) - size for size in sizes[:-1]] == [payload - 4 * mark for mark in marks]


@pytest.mark.usefixtures("chain_only")
def test_previews_of_a_file_that_may_be_cut(model: Model) -> None:
    image = picture()
    data = encode(image, model, "fast", progressive=True, previews=[4, 2])
    shown = previews(data, model)
    assert [preview.timestep for preview in shown] == [4, 2, 0]
    for preview in shown[:-1]:
        found, cut = decoding.decode_finest(data[: preview.size], model=model, allow_partial=True)
        assert found == preview.timestep
        assert cut.tobytes() == preview.image.tobytes()
        assert preview.psnr == psnr(preview.image, image)
        assert preview.bpp == 8 * preview.size / (40 * 30)
    assert shown[-1].size == len(data) and shown[-1].psnr == float("inf")


@pytest.mark.usefixtures("chain_only")
@pytest.mark.parametrize("progressive", [False, True])
def test_all_pictures_count_for_the_limit_of_memory(model: Model, progressive: bool) -> None:
    data = encode(picture(), model, "fast", progressive=progressive)
    limits = Limits(memory_bytes=expected_bytes(40, 30, True, progressive))
    decode(data, model=model, limits=limits)
    with pytest.raises(LimitError, match="memory"):
        previews(data, model, limits=limits)


def test_other_codecs_have_curves_where_the_image_is_exact(model: Model) -> None:
    image = picture()
    exact = Preview(0, image, 999, float("inf"))
    found = other_curves(exact)
    assert {"JPEG", "WebP"} <= set(found)
    for curve in found.values():
        assert curve == sorted(curve) and len(curve) == len(OTHER_QUALITIES)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=OTHER_QUALITIES[0], optimize=True)
    with Image.open(buffer) as shown:
        first = 8 * len(buffer.getvalue()) / (40 * 30), psnr(shown, image)
    assert found["JPEG"][0] == pytest.approx(first, abs=0.01)
    assert json.dumps(found) in page([exact], "a.dfc")
    assert other_curves(Preview(3, image, 99, None)) == {}


def test_of_a_lossy_file_no_quality_is_known(model: Model) -> None:
    data = encode(picture(), model, "fast", timestep=2, previews=[3, 2])
    shown = previews(data, model)
    assert [(preview.timestep, preview.psnr) for preview in shown] == [(3, None), (2, None)]
    assert shown[-1].size == len(data)


def test_tiles_by_other_coders_are_exact_at_every_timestep(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = picture((521, 9))
    plain = fallback.encode_fallback
    monkeypatch.setattr(  # the first tile is to be a chain, and so the file of tiles
        tiles,
        "encode_fallback",
        lambda im, *_: plain(im) if im.width == 257 else ("raw", bytes(1 << 20)),
    )
    data = encode(image, model, "fast")
    first, second = parse(data).tiles
    assert first.coder == "fast" != second.coder
    for preview in previews(data, model):
        assert preview.image.tobytes() == decode(data, preview.timestep, model).tobytes()


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "I;16"])
def test_without_a_chain_there_is_the_exact_image_alone(model: Model, mode: str) -> None:
    image = picture() if mode == "P" else picture(mode="L" if mode == "I;16" else mode)
    if mode == "P":
        image = image.quantize(8)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    (preview,) = previews(encode(image, model), model)
    assert preview.timestep == 0 and preview.image.mode == mode
    shown = embedded(page([preview], "x"))[0]
    assert np.array_equal(np.asarray(shown.convert("RGB")), np.asarray(eight_bits(image)))
    assert contact_sheet([preview]).mode == "RGB"


def eight_bits(image: Image.Image) -> Image.Image:
    if image.mode == "I;16":
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    return image.convert("RGBA").convert("RGB")


@pytest.mark.usefixtures("chain_only")
def test_another_machine_is_found(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(picture(), model, "fast")
    exact = Model.posterior_x

    def wrong(self: Model, *asked: Any) -> tuple[Any, Any]:
        mean, variance = exact(self, *asked)
        return mean + 0.3, variance

    monkeypatch.setattr(Model, "posterior_x", wrong)
    monkeypatch.setattr("diffcodec.viewing.show.measure_marks", lambda data, *_: parse(data))
    with pytest.raises(CorruptError, match="other probabilities"):
        previews(data, model)
    monkeypatch.setattr(Model, "posterior_x", lambda self, z, *_: (z * np.nan, z))
    with pytest.raises(CorruptError, match="other probabilities"):
        previews(data, model)


# --- the page -------------------------------------------------------------------------------------


def some(count: int = 3, size: tuple[int, int] = (40, 30)) -> list[Preview]:
    """From bad to exact, at the timesteps 2 (count - 1), ..., 2, 0."""
    image = picture(size)
    steps = [np.asarray(image) // 2**k * 2**k for k in range(count - 1, -1, -1)]
    shown = [Image.fromarray(step) for step in steps]
    return [
        Preview(2 * (count - 1 - k), found, 1000 * (k + 1), psnr(found, image))
        for k, found in enumerate(shown)
    ]


def rows_of(text: str) -> list[dict[str, str]]:
    found = re.search(r'<script id="previews" type="application/json">(.*?)</script>', text, re.S)
    assert found is not None
    rows: list[dict[str, str]] = json.loads(found[1])
    return rows


def embedded(text: str) -> list[Image.Image]:
    pictures = [base64.b64decode(row["src"].partition(",")[2]) for row in rows_of(text)]
    return [Image.open(io.BytesIO(data)) for data in pictures]


def test_the_page_holds_the_pictures_exactly() -> None:
    shown = some()
    for preview, found in zip(shown, embedded(page(shown, "x")), strict=True):
        assert found.convert("RGB").tobytes() == preview.image.tobytes()


def test_large_pictures_are_scaled() -> None:
    shown = some(1, (LARGEST_SIDE * 2, 16))
    text = page(shown, "x")
    assert embedded(text)[0].size == (LARGEST_SIDE, 8)
    assert f"{LARGEST_SIDE * 2} x 16 pixels" in text
    assert f"scaled to {LARGEST_SIDE} x 8" in text


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture
def address(tmp_path: Path) -> str:
    path = tmp_path / "page.html"
    path.write_text(page(some(), "</script><b>&.dfc"), "utf-8")
    return path.as_uri()


def state(browser: Browser) -> list[Any]:
    """What the page says: timestep, bytes, bits per pixel, PSNR; and the row that is marked."""
    fields = ("timestep", "bytes", "bpp", "psnr", "noise")
    found = [browser.value(f"document.getElementById('{field}').innerText") for field in fields]
    row = "[...document.querySelector('tr[aria-current]').cells].map(cell => cell.innerText)"
    return [*found, browser.value(row)]


def expected(preview: Preview) -> list[Any]:
    quality = f"{preview.psnr:.2f} dB" if preview.timestep else "exact"
    row = [str(preview.timestep), f"{preview.size:,}", f"{preview.bpp:.3f}", quality]
    row.append("unknown" if preview.timestep else "none")
    return [*row, row]


def pixels(browser: Browser) -> bytes:
    """What the picture on the page shows."""
    numbers = browser.value(
        """picture.decode().then(() => {
             const canvas = new OffscreenCanvas(picture.naturalWidth, picture.naturalHeight);
             const context = canvas.getContext("2d");
             context.drawImage(picture, 0, 0);
             return Array.from(context.getImageData(0, 0, canvas.width, canvas.height).data);
           })"""
    )
    return np.array(numbers, np.uint8).reshape(-1, 4)[:, :3].tobytes()


def test_the_slider_by_the_keyboard(browser: Browser, address: str) -> None:
    shown = some()
    browser.requests.clear()
    browser.open(address)
    assert browser.value("document.title") == "</script><b>&.dfc"
    assert browser.value("document.activeElement.id") == "slider"
    assert state(browser) == expected(shown[1])  # the middle
    for key, code, index in (
        *(("ArrowLeft", 37, 0), ("ArrowLeft", 37, 0)),
        *(("ArrowRight", 39, 1), ("End", 35, 2), ("Home", 36, 0)),
    ):
        browser.press(key, code)
        assert state(browser) == expected(shown[index])
        assert pixels(browser) == shown[index].image.tobytes()
        assert browser.value("location.hash") == f"#t={shown[index].timestep}"
        spoken = browser.value("slider.getAttribute('aria-valuetext')")
        assert spoken == f"timestep {shown[index].timestep}"
        assert browser.value("picture.alt").endswith(spoken)
    asked = {url for url in browser.requests if not url.startswith(("about:", "data:"))}
    assert {url.partition("#")[0] for url in asked} == {address}


def test_the_slider_by_bytes(browser: Browser, address: str) -> None:
    """Of 1000, 2000 and 3000: the finest of those that fit, by the logarithm."""
    browser.open(address)
    budget, fits = "document.getElementById('budget')", "document.getElementById('fits')"
    for value, told, index in (
        (0, "1,000", 0),
        (0.6, "1,933", 0),
        (0.7, "2,158", 1),
        (1, "3,000", 2),
    ):
        browser.value(f"{budget}.value = {value}; {budget}.dispatchEvent(new Event('input'))")
        assert state(browser) == expected(some()[index])
        assert browser.value(f"{fits}.innerText") == told
        assert browser.value(f"{budget}.getAttribute('aria-valuetext')") == f"{told} bytes"
    browser.open(address + "#t=2")  # it follows the other slider
    assert browser.value(f"{fits}.innerText") == "2,000"


def test_a_page_of_one_picture_has_nothing_to_choose(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page(some()[-1:], "exact.dfc"), "utf-8")
    browser.open(path.as_uri())
    assert state(browser) == expected(some()[-1])
    assert browser.value("document.getElementById('fits').textContent") == "3,000"
    sides = "[...document.querySelectorAll('input, button, select')].map(one => one.offsetWidth)"
    shown = browser.value(f"{sides}.filter(side => side).length")
    assert shown == 1  # the zoom


def test_addresses_of_timesteps(browser: Browser, address: str) -> None:
    shown = some()
    for fragment, index in (("#t=2", 1), ("#t=4", 0), ("#t=0", 2), ("#t=3", 1), ("#2", 1)):
        browser.open(address + fragment)
        assert state(browser) == expected(shown[index])
        assert pixels(browser) == shown[index].image.tobytes()
    browser.value("document.querySelectorAll('#rows a')[1].click()")
    browser.value("new Promise(done => setTimeout(done))")
    assert state(browser) == expected(shown[1])
    assert browser.value("slider.value") == "1"


def choose(browser: Browser, name: str, value: str) -> None:
    """An option of a list on the page, as by the mouse."""
    chosen = f"document.getElementById('{name}')"
    browser.value(f"{chosen}.value = '{value}'")
    browser.value(f"{chosen}.dispatchEvent(new Event('input'))")
    browser.value("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")


def seen(browser: Browser) -> Any:
    """The pixels of the picture on the screen, as whole factors of its own."""
    box = browser.value("(({x, y}) => [x, y])(picture.getBoundingClientRect())")
    with Image.open(io.BytesIO(browser.screenshot())) as image:
        screen = np.asarray(image.convert("RGB")).astype(int)
    return screen[round(box[1]) :, round(box[0]) :]


def test_the_picture_beside_the_finest_and_their_difference(browser: Browser, address: str) -> None:
    shown = some()
    first, last = (np.asarray(shown[i].image).astype(int) for i in (0, 2))
    browser.resize(1280, 800)
    browser.open(address + "#t=4")
    choose(browser, "zoom", "4")
    for view, left, right in (
        ("", first, first),
        ("split", first, last),
        ("difference", *[np.minimum(255, 8 * abs(first - last))] * 2),
    ):
        choose(browser, "view", view)
        found = seen(browser)[2:120:4, 2:160:4]  # the middle of each pixel's four by four
        assert abs(found[:, :19] - left[:, :19]).max() <= 3
        assert abs(found[:, 21:] - right[:, 21:]).max() <= 3


def test_play_and_the_curve(browser: Browser, address: str) -> None:
    browser.open(address + "#t=4")
    browser.value("document.getElementById('play').click()")
    wait = "new Promise(done => { const i = setInterval(() => { if (slider.value === '2'"
    browser.value(wait + " && play.textContent === 'Play') { clearInterval(i); done() } }, 50) })")
    assert state(browser) == expected(some()[2])
    marks = "document.querySelectorAll('#curve circle')"
    assert browser.value(f"{marks}.length") == 2  # the exact one has no PSNR
    browser.value(
        "document.getElementById('curve').dispatchEvent(new MouseEvent('click', "
        f"(({{x, y}}) => ({{clientX: x + 3, clientY: y}}))({marks}[0].getBoundingClientRect())))"
    )
    assert browser.value("slider.value") == "0"
    assert browser.value(f"{marks}[0].getAttribute('class')") == "now"


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone(browser: Browser, address: str, dark: bool) -> None:
    browser.resize(360, 640, dark)
    browser.open(address)
    assert browser.value("document.documentElement.scrollWidth") <= 360
    assert browser.value("slider.getBoundingClientRect().height") >= 40  # for a thumb
    bottom = browser.value("document.getElementById('psnr').getBoundingClientRect().bottom")
    assert bottom <= 640  # picture, slider and figures at once
    with Image.open(io.BytesIO(browser.screenshot())) as image:
        ground = np.asarray(image.convert("L"))[-1, 0]
    assert (ground < 64) == dark
    text = browser.value("getComputedStyle(document.body).color")
    assert (min(map(int, re.findall(r"\d+", text)[:3])) > 191) == dark
    browser.resize(1280, 800)


# --- the contact sheet ----------------------------------------------------------------------------


def test_a_contact_sheet_has_all_pictures() -> None:
    shown = some(5)
    sheet = np.asarray(contact_sheet(shown))
    side = PANEL_SIDES[0] // 40  # pictures are repeated so many times
    for k, preview in enumerate(shown):
        left = MARGIN + k * (PANEL_SIDES[0] + MARGIN)
        found = sheet[MARGIN : MARGIN + 30 * side, left : left + 40 * side]
        assert np.array_equal(found[::side, ::side], np.asarray(preview.image))
        below = sheet[MARGIN + 30 * side :, left : left + PANEL_SIDES[0]]
        assert (below == 255).all(2).mean() < 0.98  # there is text
        assert (sheet[:, left - MARGIN : left] == 255).all()  # and nowhere else
    assert (sheet[:, -MARGIN:] == 255).all()


def test_a_contact_sheet_of_large_pictures() -> None:
    sheet = contact_sheet(some(6, (800, 600)))
    most = PANEL_SIDES[1]
    assert sheet.width == 3 * (most + MARGIN) + MARGIN  # rows as equal as can be
    titled = contact_sheet(some(6, (800, 600)), "a title")
    above = titled.height - sheet.height
    assert (np.asarray(titled)[above + MARGIN :] == np.asarray(sheet)[MARGIN:]).all()
    assert np.asarray(titled)[: above + MARGIN].min() < 64
    assert 2 * (most * 3 // 4) < sheet.height < 2 * most


def test_a_contact_sheet_is_as_wide_as_its_title() -> None:
    title = "a-name-that-is-wider-than-the-one-picture.dfc"
    sheet = np.asarray(contact_sheet(some(1), title))
    assert (sheet[:, -MARGIN:] == 255).all()
    wider = np.asarray(contact_sheet(some(1), title + "c"))
    assert wider.shape[1] > sheet.shape[1] > PANEL_SIDES[0] + 2 * MARGIN


# --- the command ----------------------------------------------------------------------------------


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["show", *arguments], prog_name="diffcodec")


@pytest.fixture(scope="module")
def lossy(model: Model) -> bytes:
    return encode(picture(), model, "fast", timestep=1, previews=[3])


@pytest.fixture
def folder(lossy: bytes, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.dfc").write_bytes(lossy)
    Path("tiny.safetensors").write_bytes(tiny.read_bytes())


MODEL = ("--model", "tiny.safetensors")


@pytest.mark.usefixtures("folder")
def test_the_suffix_chooses() -> None:
    result = run(*MODEL, "a.dfc")
    assert (result.exit_code, result.stderr) == (0, "a.dfc -> a.html: 2 timesteps\n")
    text = Path("a.html").read_text("utf-8")
    assert "<title>a.dfc</title>" in text
    assert [row["timestep"] for row in rows_of(text)] == [3, 1]
    assert [row["psnr"] for row in rows_of(text)] == ["unknown", "unknown"]
    assert "by the model tiny</p>" in text
    levels = model_info(Path("tiny.safetensors")).plans["fast"].levels
    assert [row["noise"] for row in rows_of(text)] == [f"{levels[2]:.3g}", f"{levels[0]:.3g}"]
    assert run(*MODEL, "a.dfc", "-o", "sheet.PNG", "--quiet").stderr == ""
    with Image.open("sheet.PNG") as image:
        assert image.format == "PNG"
    assert run(*MODEL, "a.dfc", "-").stdout == text
    assert run(*MODEL, "--output-dir", ".", "-f", "a.dfc").exit_code == 0


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("a.dfc", "a.jpg"), 2, "a.jpg: expected .html for a page, or .png for a contact sheet"),
        (("a.dfc", "tiny.safetensors"), 2, "expected .html"),
        (("none.dfc",), 1, "none.dfc: No such file"),
        (("cut.dfc",), 3, "cut.dfc: the file ends early"),
        (("tiny.safetensors", "x.html"), 3, "tiny.safetensors: not a diffcodec file"),
        (("a.dfc", "old.html"), 1, "old.html: it exists already"),
        (("a.dfc", "a.html", "--model", "photo"), 4, "a.dfc: the file was made with model"),
        (("a.dfc", "--max-pixels", "1000"), 3, "40 x 30 pixels = 1200, the limit is 1000"),
        (("a.dfc", "--max-memory", "1"), 3, "memory, the limit is 1 MiB"),
    ],
)
def test_what_cannot_be_shown(arguments: tuple[str, ...], code: int, message: str) -> None:
    Path("cut.dfc").write_bytes(Path("a.dfc").read_bytes()[:-1])
    Path("old.html").write_text("old")
    result = run(*MODEL, *arguments)
    assert (result.exit_code, message in result.stderr) == (code, True), result.stderr
    assert Path("old.html").read_text() == "old"
    assert not Path("a.html").exists()
