import re

import numpy as np
import pytest
from conftest import scored
from PIL import Image
from selenium.webdriver.common.keys import Keys

from srgan_tf.evaluation import report
from srgan_tf.evaluation.methods import Method, bicubic

METHODS = ["nearest", "bicubic", "trained <b>&amp;</b>"]


def _brighter(lr):
    return np.minimum(bicubic(lr), 225) + np.uint8(30)


def _report(folder, sizes, method_count=3):
    """Scores made-up pictures of these sizes and writes the page; the third method brightens."""
    names = [METHODS[2], *(f"method {i}" for i in range(3, method_count))]
    card = {"name": METHODS[2], "path": "somewhere"}
    also = [Method(name, _brighter, f"hash of {name}", card) for name in names]
    results = scored(folder, sizes, also)
    return report.write_report(results, folder / "out"), results


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return _report(tmp_path_factory.mktemp("report"), [(96, 128), (400, 300), (60, 60)])


@pytest.fixture
def page(browser, written):
    """The page, open, its first picture built and at the top of the window."""
    browser.open(written[0])
    _show_first(browser)
    yield browser
    assert not browser.problems()
    assert all(url.startswith(("file:", "data:")) for url in browser.requests())


def _show_first(page):
    page.js("document.querySelector('article').scrollIntoView()")
    page.wait("document.querySelectorAll('.stage img')[1]?.naturalWidth")


def _line(page):
    return page.js("parseFloat(document.querySelector('.divider').style.left)")


def _choose(page, selector, value):
    page.js(
        f"(s => {{ s.value = {value}; s.dispatchEvent(new Event('change')) }})"
        f"(document.querySelector({selector!r}))"
    )


def _mean_of_right_side(page):
    """Mean level of the picture in the right layer of the first viewer, read from a canvas."""
    return page.js("""(async () => {
        const image = document.querySelectorAll('.stage img')[1];
        await image.decode();
        const canvas = document.createElement('canvas');
        canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
        const context = canvas.getContext('2d');
        context.drawImage(image, 0, 0);
        const values = context.getImageData(0, 0, canvas.width, canvas.height).data;
        let sum = 0;
        for (let i = 0; i < values.length; i += 4) sum += values[i] + values[i + 1] + values[i + 2];
        return sum / (values.length / 4 * 3);
    })()""")


def test_the_dividing_line_follows_mouse_slider_and_keys(page):
    assert _line(page) == 50
    page.drag(".stage", (0.5, 0.5), (0.25, 0.5))
    assert _line(page) == pytest.approx(25, abs=1)
    clip = page.js("document.querySelectorAll('.layer')[1].style.clipPath")
    assert float(re.search(r"([\d.]+)%", clip)[1]) == pytest.approx(25, abs=1)
    page.js("document.querySelector('.slide').focus()")
    page.press(Keys.ARROW_RIGHT)
    assert _line(page) == pytest.approx(25.5, abs=1)
    page.js("document.querySelector('.stage').focus()")
    page.press(Keys.ARROW_LEFT)
    assert _line(page) == pytest.approx(23.5, abs=1)


def test_tab_reaches_every_control_of_a_picture_in_order(page):
    page.js("document.getElementById('all-right').focus()")
    reached = []
    for _ in range(8 + len(METHODS) + 1):
        page.press(Keys.TAB)
        reached.append(page.js("document.activeElement.getAttribute('aria-label')"))
    starts = [
        "Left side", "Right side", "Set5 0", "Line between", "Zoom out", "Zoom in",
        "Take the crops", *(f"{name}: PSNR" for name in METHODS), "original", "Left side",
    ]  # fmt: skip
    for label, start in zip(reached, starts, strict=True):
        assert label.startswith(start)
    assert "Set5 1" in reached[-1]


def test_choosing_another_method_changes_the_picture(page, written):
    levels = []
    for method in (1, 2, 3):
        _choose(page, "article select[aria-label^=Right]", method)
        levels.append(_mean_of_right_side(page))
    bicubic, brighter, original = levels
    hr = np.asarray(Image.open(written[0].parent / next(iter(written[1].originals.values()))))
    assert original == pytest.approx(hr.mean(), abs=0.01)
    assert brighter > bicubic + 20
    assert page.js("document.querySelector('.name.right').textContent.trim()") == "original"


def test_clicking_a_crop_shows_its_method_on_the_right(page):
    page.js("document.querySelectorAll('.crops button')[0].click()")
    assert page.js("document.querySelector('.name.right').textContent").startswith("nearest ")
    pressed = page.js(
        "[...document.querySelectorAll('article .crops')[0].children]"
        ".map(b => b.getAttribute('aria-pressed'))"
    )
    assert pressed == ["true", "false", "false", "false"]


def test_the_methods_of_all_pictures_are_chosen_and_swapped_together(page):
    _choose(page, "#all-left", 3)
    _choose(page, "#all-right", 0)
    page.js("document.getElementById('swap').click()")
    names = page.js("[...document.querySelectorAll('.name')].map(n => n.firstChild.data)")
    assert len(names) >= 4 and names == ["nearest", "original"] * (len(names) // 2)


def test_both_sides_zoom_and_move_together(page):
    def transforms():
        return page.js(
            "[...document.querySelectorAll('.stage')[0].querySelectorAll('img')]"
            ".map(i => i.style.transform + i.style.width)"
        )

    before = transforms()
    page.js("document.querySelector('[aria-label^=\"Zoom in\"]').click()")
    zoomed = transforms()
    assert zoomed[0] == zoomed[1] != before[0]
    page.drag(".stage", (0.7, 0.5), (0.6, 0.4))
    moved = transforms()
    assert moved[0] == moved[1] != zoomed[0]
    assert _line(page) == 50
    page.js("document.querySelector('.stage').focus()")
    page.press(Keys.ARROW_RIGHT)
    assert transforms()[0] != moved[0]
    page.press("0")
    assert transforms() == before
    page.press("+")
    assert transforms() == zoomed
    page.press("-")
    assert transforms() == before


def test_crops_show_the_same_place_of_every_method_and_follow_the_view(page):
    crops = (
        "[...document.querySelector('.crops').querySelectorAll('img')].map(i => i.style.transform)"
    )
    before = page.js(crops)
    assert len(before) == 4 and len(set(before)) == 1
    page.js("document.querySelector('.stage').focus()")
    page.press("+")
    page.press("+")
    for _ in range(30):
        page.press(Keys.ARROW_RIGHT)
        page.press(Keys.ARROW_DOWN)
    page.js("document.querySelector('[aria-label^=\"Take the crops\"]').click()")
    after = page.js(crops)
    assert len(set(after)) == 1 and after != before
    captions = page.js("[...document.querySelectorAll('.crops')][0].innerText")
    assert re.search(r"bicubic\s+\d\d\.\d\d dB / 0\.\d{4}", captions)


def test_the_spread_is_drawn_for_the_chosen_measure(page):
    places = "[...document.querySelectorAll('.track a')].map(a => a.style.left)"
    before = page.js(places)
    assert len(before) == 3 * 3
    _choose(page, "#measure", "'ssim_wang-'")
    assert page.js(places) != before
    # Bicubic's difference to bicubic is zero for each picture.
    assert len(set(page.js(places)[3:6])) == 1


def test_names_are_escaped_and_tables_are_complete(page, written):
    text = page.js("document.querySelector('table').innerText")
    assert METHODS[2] in text and "SSIM (Wang)" in text
    for method, scores in written[1].means()["Set5"].items():
        assert f"{scores['psnr']:.2f}" in text, method
    assert page.js("document.querySelector('h3 + .strip span:nth-of-type(1)').textContent")
    assert page.js("document.querySelector('article h3').textContent") == "Set5 0 #%"


def test_the_page_fits_a_phone_in_dark_mode(browser, written):
    browser.open(written[0], width=360, height=740, dark=True, phone=True)
    _show_first(browser)
    assert browser.js("document.documentElement.scrollWidth") == 360
    colors = browser.js(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    background, ink = (sum(map(int, re.findall(r"\d+", color)[:3])) for color in colors)
    assert background < 100 and ink > 600
    x, _, width, _ = browser.box(".stage")
    assert x >= 0 and x + width <= 360
    browser.drag(".stage", (0.5, 0.5), (0.8, 0.5), touch=True)
    assert _line(browser) == pytest.approx(80, abs=2)
    assert not browser.problems()


def test_a_small_report_embeds_its_pictures_and_a_large_one_links_to_them(
    written, tmp_path, monkeypatch, browser
):
    alone = tmp_path / "alone.html"
    alone.write_bytes(written[0].read_bytes())
    browser.open(alone)
    _show_first(browser)

    monkeypatch.setattr(report, "SELF_CONTAINED_BYTES", 1000)
    beside = report.write_report(written[1], written[0].parent).rename(
        written[0].with_name("beside.html")
    )
    embedded = 'type="text/plain" id="file'
    assert embedded in alone.read_text() and embedded not in beside.read_text()
    browser.open(beside)
    _show_first(browser)
    assert browser.js("document.querySelector('.stage img').src").startswith("file:")
    assert not browser.problems()


@pytest.fixture(scope="module")
def dialed(tmp_path_factory):
    """A report with LPIPS and three positions of a dial between two methods."""
    folder = tmp_path_factory.mktemp("dialed")
    ends = [
        Method(name, lambda lr, level=level: np.maximum(bicubic(lr), level), name, {"path": name})
        for name, level in (("faithful", 10), ("detailed", 200))
    ]
    blend = Method("blend:0.5", None, "blend", {"path": "b"}, 0.5, tuple(ends))

    def distance(sr, hr):
        return float(np.abs(sr.astype(float) - hr).mean() / 255)

    results = scored(folder, [(64, 80)], [*ends, blend], lpips=distance)
    return report.write_report(results, folder / "out"), results


def test_the_plane_shows_each_method_and_a_line_for_the_dial(browser, dialed):
    path, results = dialed
    browser.open(path, width=360, height=740, dark=True, phone=True)
    titles = browser.js("[...document.querySelectorAll('.plane title')].map(t => t.textContent)")
    for method, scores in results.means()["Set5"].items():
        text = f"{method}: {scores['psnr']:.2f} dB, LPIPS {scores['lpips']:.4f}"
        assert text in titles
    order = browser.js("""(() => {
        const circles = [...document.querySelectorAll('.plane circle')];
        const at = (p) => circles.find(
            c => c.cx.baseVal.value === p.x && c.cy.baseVal.value === p.y);
        return [...document.querySelector('.plane .dial').points].map(
            p => at(p).textContent.split(':').slice(0, -1).join(':'));
    })()""")
    assert order == ["faithful", "blend:0.5", "detailed"]
    labels = browser.js("[...document.querySelectorAll('.plane .label')].map(t => t.textContent)")
    assert labels == ["nearest", "bicubic", "faithful", "detailed", "0.5"]
    assert browser.js("document.documentElement.scrollWidth") == 360
    size = "parseFloat(getComputedStyle(document.querySelector('.plane .tick')).fontSize)"
    shrunk = "document.querySelector('.plane').getBoundingClientRect().width / 360"
    assert browser.js(f"{size} * {shrunk}") > 9
    assert not browser.problems()


def test_the_detail_slider_moves_the_right_side_through_the_dial(browser, dialed):
    browser.open(dialed[0])
    _show_first(browser)
    right = "document.querySelector('.name.right').firstChild.data"
    assert browser.js(right) == "detailed"
    browser.js("document.querySelector('.dial-label input').focus()")
    shown = []
    for _ in range(2):
        browser.press(Keys.ARROW_LEFT)
        shown.append((browser.js(right), _mean_of_right_side(browser)))
    (half, brighter), (faithful, darker) = shown
    assert (half, faithful) == ("blend:0.5", "faithful") and brighter > darker + 5
    _choose(browser, "article select[aria-label^=Right]", 0)
    text = browser.js("document.querySelector('.dial-label').textContent")
    assert text == "Detail, faithful to detailed: not on the right side now"
    assert not browser.problems()


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A report of 119 pictures by 7 methods."""
    return _report(tmp_path_factory.mktemp("many"), [(32, 32)] * 119, method_count=7)


@pytest.mark.parametrize("share", [0.99, 1.01])
def test_only_pictures_near_the_window_are_loaded(browser, many, share):
    path, results = many
    # Pads the PNG files to just below and just above the limit for embedding.
    files = list((path.parent / "pictures").rglob("*.png"))
    for file in files:
        with file.open("r+b") as opened:
            opened.truncate(int(share * report.SELF_CONTAINED_BYTES * 3 / 4 / len(files)))
    report.write_report(results, path.parent)
    megabytes = path.stat().st_size / 1e6
    assert 29 < megabytes < 31 if share < 1 else megabytes < 1

    browser.open(path)
    assert browser.js("document.querySelectorAll('.stage').length") < 20
    assert len(browser.requests()) < 20 * 8
    assert browser.js("document.querySelectorAll('article').length") == 119
    assert browser.js("document.querySelectorAll('.track a').length") == 119 * 7
    browser.js("document.querySelector('#picture0-100').scrollIntoView()")
    shown = "document.querySelector('#picture0-100 .stage img')"
    browser.wait(f"{shown} && {shown}.naturalWidth")
    browser.wait("document.querySelectorAll('.stage').length < 40")
    assert not browser.problems()
