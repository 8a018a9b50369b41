"""The page of `export.py --format=web`, in a browser; most of it needs LiteRT.js from npm."""

import base64
import contextlib
import functools
import http.server
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import photograph, png_of, save_photograph
from PIL import ExifTags, Image, ImageOps
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from srgan_tf import networks, resize, upscaling, weights
from srgan_tf.formats import exported, web
from srgan_tf.photos import transparency

DONE = "state === 'done' || error()"


def _generator(seed):
    """A tiny generator, in which zero padding changes much of a picture, and its card."""
    keras.utils.set_random_seed(seed)
    generator = networks.build_generator(residual_blocks=2, filters=8)
    for layer in generator.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, *moving = layer.get_weights()
            layer.set_weights([gamma + 0.5, beta + 0.2, *moving])
    return generator, {"name": f"network {seed}#%"}


@pytest.fixture(scope="module")
def generators():
    return [_generator(1), _generator(2)]


@pytest.fixture(scope="module")
def pairs():
    hr = photograph(64, 80)
    return [(resize.imresize(hr, (16, 20)), hr)]


@pytest.fixture(scope="session")
def npm_folder(pytestconfig):
    """The folder @litertjs of an npm installation, kept between test runs, or a skip."""
    # One for each of xdist's processes, since npm must not run twice in a folder.
    folder = pytestconfig.cache.mkdir("npm" + os.environ.get("PYTEST_XDIST_WORKER", ""))
    _install(folder, *web.RUNTIME.values())
    return folder / "node_modules" / "@litertjs"


def _install(folder, *packages):
    if not shutil.which("npm"):
        pytest.skip("no npm")
    command = ["npm", "install", "--prefer-offline", "--no-audit", *packages]
    if subprocess.run(command, cwd=folder, capture_output=True, timeout=120).returncode:
        pytest.skip(f"npm cannot install {' '.join(packages)}")


@contextlib.contextmanager
def _serving(folder):
    """Runs the page's own serve.py."""
    command = [sys.executable, folder / "serve.py", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield re.search(r"http://[^ ]+/", process.stdout.readline()).group()
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def bare(generators, pairs, tmp_path_factory):
    """The folder of a page without the runtime."""
    folder = tmp_path_factory.mktemp("bare")
    web.export(generators[:1], folder, pairs=pairs)
    return folder


@pytest.fixture(scope="module")
def complete(generators, pairs, npm_folder, tmp_path_factory):
    """The folder of a page with two networks and the runtime."""
    folder = tmp_path_factory.mktemp("complete")
    web.export(generators, folder, runtime=npm_folder, pairs=pairs)
    return folder


@pytest.fixture(scope="module")
def address(complete):
    with _serving(complete) as address:
        yield address


@pytest.fixture
def page(browser, address, tmp_path):
    _open(browser, address, tmp_path)
    yield browser
    assert not browser.problems()
    assert all(url.startswith((address, "blob:", "data:")) for url in browser.requests())


def _open(browser, address, downloads):
    browser.open(address)
    browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)}
    )
    browser.execute_script("self.error = () => $('error').hidden ? '' : $('error').textContent")


def _choose(page, path):
    page.find_element(By.ID, "file").send_keys(str(path))
    page.wait(f"picture?.file.name === {json.dumps(path.name)} || error()")


def _click(page, name):
    page.find_element(By.ID, name).click()


def _upscale(page, path):
    _choose(page, path)
    _click(page, "start")
    page.wait(DONE)
    assert not page.js("error()")


def _download(page, path):
    """Downloads the result and returns it."""
    _click(page, "download")
    saved = path.with_name(f"{path.stem}_x4.png")
    WebDriverWait(page, 60, 0.05).until(lambda _: saved.exists())
    result = np.asarray(Image.open(saved))
    saved.unlink()
    return result


def _expected(folder, lr, detail):
    """Upscales a picture as upscale.py does, in its own tiles."""
    first, second = (exported.load(path) for path in sorted(folder.glob("*.tflite")))
    return upscaling.upscale(upscaling.blended(first, second, detail), lr)


def _difference(one, two):
    return np.abs(one.astype(int) - two).max()


def test_the_folder_is_a_static_page_with_its_networks(bare, generators):
    page = (bare / "index.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page).group(1))
    assert data["models"] == [{"name": "network 1#%", "file": "network%201%23%25.float32.tflite"}]
    assert data["margin"] == exported.load(bare / "network 1#%.float32.tflite").margin
    assert data["runtime"]["core"] == "https://cdn.jsdelivr.net/npm/@litertjs/core@2.5.3"
    for file in re.findall(r'(?:src|href)="([\w.]+)"', page) + ["worker.js", "serve.py"]:
        assert (bare / file).is_file()
    assert not [path for path in bare.iterdir() if path.name.startswith(".")]


def test_mistakes_of_the_command_line_are_one_line(run_script, tmp_path):
    def error(*arguments):
        code, _, stderr = run_script("export.py", f"--out_dir={tmp_path / 'out'}", *arguments)
        assert code == 1 and stderr.count("\n") == 1
        return stderr

    assert "--web_runtime is for --format=web" in error("--web_runtime=x")
    assert "export web by itself" in error("--format=web,tflite")
    assert "for web give one of float32,float16" in error("--format=web", "--quantize=int8")
    assert "--input_size is for tflite" in error("--format=web", "--input_size=9,9")
    assert "a page takes one or two" in error("--format=web", "--weights=one,two,three")
    twice = error("--format=web", "--weights=srresnet_mse,srresnet_mse")
    assert "two networks are named srresnet_mse" in twice
    missing = error("--format=web", f"--web_runtime={tmp_path}")
    assert "no core/dist/index.js in it: run npm install @litertjs/core@" in missing
    assert not (tmp_path / "out").exists()


def test_networks_whose_files_share_a_name_are_refused(generators, pairs, tmp_path):
    (first, _), (second, _) = generators
    pair = [(first, {"name": "mine"}), (second, {"name": "mine.keras"})]
    with pytest.raises(ValueError, match="two networks are named mine,"):
        web.export(pair, tmp_path / "out", pairs=pairs)


def _png(width, height):
    """A PNG that states a size and holds next to nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return png_of((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))


def test_a_file_that_is_not_a_photo_gets_one_sentence(browser, bare, tmp_path):
    drawing = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>'
    cases = {
        "empty.jpg": (b"", "empty.jpg is empty."),
        "drawing.svg": (drawing, "drawing.svg is a drawing"),
        "drawing.png": (b"<?xml version='1.0'?>" + drawing, "drawing.png is a drawing"),
        "text.png": (b"only text", "text.png is not a photo that this browser can read"),
        "header.png": (_png(20000, 20000)[:33], "header.png is not a photo"),
        "huge.png": (_png(20000, 20000), "huge.png has 20000x20000 pixels"),
    }
    with _serving(bare) as address:
        _open(browser, address, tmp_path)
        for name, (contents, sentence) in cases.items():
            (tmp_path / name).write_bytes(contents)
            _choose(browser, tmp_path / name)
            message = browser.js("error()")
            assert message.startswith(sentence) and message.count(".\n") == 0, message
            assert browser.js("state") == "empty"
        # More than can be upscaled at once, but not more than can be cut.
        (tmp_path / "large.png").write_bytes(_png(8000, 6000))
        _choose(browser, tmp_path / "large.png")
        browser.wait("state === 'chosen'")
        assert "choose a part of at most 16.78 megapixels" in browser.js("error()")
        assert browser.js("part.width * part.height <= MOST && !$('start').disabled")
    browser.open(bare / "index.html")
    assert "run python serve.py" in browser.js("$('error').textContent")
    browser.problems()  # of the huge pictures


@pytest.mark.parametrize("size", [(30, 41), (257, 300)])
def test_the_page_makes_upscale_pys_pixels(page, complete, tmp_path, size):
    path = tmp_path / "photo 1.webp"
    lr = save_photograph(path, *size, lossless=True)
    _upscale(page, path)
    tiles = 1 if max(size) < 256 else 4
    assert page.js("pieces.map((layer) => layer.length)") == [tiles, tiles]
    assert _difference(_download(page, path), _expected(complete, lr, 0.5)) <= 1
    page.execute_script("$('detail').value = 0.2; $('detail').dispatchEvent(new Event('input'))")
    assert _difference(_download(page, path), _expected(complete, lr, 0.2)) <= 1


def test_a_part_of_an_oriented_photo_is_upscaled_by_itself(page, complete, tmp_path):
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    save_photograph(path, 120, 90, quality=95, subsampling=0, exif=exif)
    lr = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    _choose(page, path)
    _click(page, "cut")
    assert "with Shift they resize it" in page.js("$('stage').getAttribute('aria-label')")
    page.drag("#stage", (10 / 120, 20 / 90), (70 / 120, 50 / 90))
    page.find_element(By.ID, "stage").send_keys(Keys.ARROW_RIGHT)
    part = page.js("[part.left, part.top, part.width, part.height]")
    np.testing.assert_allclose(part, [12, 20, 60, 30], atol=1)
    _click(page, "start")
    page.wait(DONE)
    left, top, width, height = part
    expected = _expected(complete, lr[top : top + height, left : left + width], 0.5)
    assert _difference(_download(page, path), expected) <= 2


def test_alpha_is_kept(page, complete, tmp_path):
    lr = np.dstack([photograph(40, 50), np.full([40, 50], 255, np.uint8)])
    lr[10:30, 15:40, 3] = photograph(20, 25, seed=3)[..., 0]
    path = tmp_path / "translucent.png"
    Image.fromarray(lr).save(path)
    _upscale(page, path)
    result = _download(page, path)
    alpha = Image.fromarray(lr[..., 3].astype(np.float32))
    expected = np.asarray(alpha.resize((200, 160), Image.Resampling.BICUBIC))
    assert _difference(result[..., 3], np.clip(np.round(expected), 0, 255)) <= 1
    assert "blob:" in page.js("$('after').style.maskImage")


def test_hidden_colors_leave_no_fringe(page, complete, tmp_path):
    lr = np.dstack([photograph(100, 150), np.full([100, 150], 255, np.uint8)])
    lr[20:90, 10:140, 3] = 0
    lr[40:50, 60:75, 3] = 255
    path = tmp_path / "logo.png"
    Image.fromarray(lr).save(path)
    _upscale(page, path)
    expected = _expected(complete, transparency.filled(lr[..., :3], lr[..., 3]), 0.5)
    assert _difference(_download(page, path)[..., :3], expected) <= 2


def test_the_slider_compares_and_zooms(page, tmp_path):
    path = tmp_path / "photo.jpg"
    save_photograph(path, 150, 200)
    _upscale(page, path)
    page.drag("#stage", (0.5, 0.5), (0.25, 0.5))
    assert page.js("+$('slide').value") == pytest.approx(25, abs=1)
    assert (
        page.js("$('after').style.clipPath") == f"inset(0px 0px 0px {page.js('$(`slide`).value')}%)"
    )
    page.find_element(By.ID, "stage").send_keys(Keys.ARROW_RIGHT)
    assert page.js("+$('slide').value") == pytest.approx(27, abs=1)
    _click(page, "one")
    assert page.js("$('level').textContent") == "100%"
    assert page.js("pieces[0][0].image.getBoundingClientRect().width") == 800
    _click(page, "in")
    assert page.js("pieces[0][0].image.getBoundingClientRect().width") == 1600


def test_photos_are_dropped_and_pasted_on_a_phone_in_the_dark(page, address):
    page.open(address, width=360, height=740, dark=True, phone=True)
    drop = "new DragEvent('drop', {dataTransfer: data})"
    paste = "new ClipboardEvent('paste', {clipboardData: data})"
    for number, event in enumerate((drop, paste)):
        page.execute_script(f"""
            const canvas = document.createElement("canvas"), data = new DataTransfer();
            canvas.toBlob((blob) => {{
              data.items.add(new File([blob], "photo {number}.png", {{type: blob.type}}));
              dispatchEvent({event});
            }});""")
        page.wait(f"picture?.file.name === 'photo {number}.png'")
        assert page.js("$('title').textContent") == f"photo {number}.png"
    _click(page, "start")
    page.wait("state === 'done'")
    assert page.js("document.documentElement.scrollWidth") == 360
    color = "getComputedStyle(document.body).backgroundColor"
    assert page.js(color) == "rgb(20, 23, 27)"
    page.drag("#stage", (0.5, 0.5), (0.8, 0.5), touch=True)
    assert page.js("view.position") == pytest.approx(80, abs=2)


def test_a_cancelled_photo_can_be_started_again(page, tmp_path):
    path = tmp_path / "photo.png"
    save_photograph(path, 500, 600)
    _choose(page, path)
    _click(page, "start")
    page.wait("pieces.flat().length")
    assert re.fullmatch(
        r"Tile \d+ of \d+ on the CPU, \d+ (s|min) left", page.js("$('status').textContent")
    )
    _click(page, "cancel")
    assert page.js("state") == "chosen" and page.js("worker") is None
    _click(page, "start")
    page.wait(DONE)
    assert not page.js("error()")


def test_after_an_error_the_next_try_starts_clean(page, tmp_path):
    path = tmp_path / "photo.png"
    save_photograph(path, 30, 40)
    page.execute_script("self.file = data.models[0].file; data.models[0].file = 'gone'")
    _choose(page, path)
    _click(page, "start")
    page.wait("error()")
    assert page.js("error()") == "gone cannot be loaded: check the connection and the server."
    page.problems()  # the failed load
    page.execute_script("data.models[0].file = file")
    _click(page, "start")
    page.wait("state === 'done'")
    assert not page.js("error()")
    page.execute_script("self.blob = pieces[0][0].blob; pieces[0][0].blob = new Blob(['x'])")
    _click(page, "download")
    page.wait("error()")
    assert page.js("error()").startswith("The PNG cannot be written (")
    assert page.js("$('status').textContent") == ""
    page.execute_script("pieces[0][0].blob = blob")
    assert _download(page, path).shape == (120, 160, 3)
    assert not page.js("error()")


def test_keyboard_focus_follows_the_buttons(page, tmp_path):
    path = tmp_path / "photo.png"
    save_photograph(path, 500, 600)
    _choose(page, path)
    page.find_element(By.ID, "start").send_keys(Keys.ENTER)
    assert page.js("[state, document.activeElement.id]") == ["running", "cancel"]
    page.press(Keys.ENTER)
    assert page.js("[state, document.activeElement.id]") == ["chosen", "start"]


def test_a_network_with_a_wide_margin_gets_larger_tiles(page, complete, tmp_path):
    page.execute_script("data.margin = 130")
    path = tmp_path / "photo.png"
    lr = save_photograph(path, 10, 260)
    _upscale(page, path)
    assert _difference(_download(page, path), _expected(complete, lr, 0.5)) <= 1


def test_serve_py_names_a_port_that_it_cannot_take(bare):
    def error(port):
        command = [sys.executable, bare / "serve.py", port]
        found = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert found.returncode == 1 and found.stderr.count("\n") == 1
        return found.stderr

    with _serving(bare) as address:
        port = address.rstrip("/").rpartition(":")[2]
        assert f"cannot serve at port {port} (" in error(port)
    assert "cannot serve at port x (" in error("x")


def test_a_plain_host_and_a_remote_runtime_suffice(browser, complete, npm_folder, tmp_path):
    """One thread, and the runtime from another origin, as from the CDN."""
    cors = {"Access-Control-Allow-Origin": "*", "Cross-Origin-Resource-Policy": "cross-origin"}
    path = tmp_path / "photo.png"
    lr = save_photograph(path, 40, 50)
    with _hosted(npm_folder, cors) as elsewhere:
        folder = tmp_path / "page"
        shutil.copytree(complete, folder, ignore=shutil.ignore_patterns("litertjs"))
        page = (folder / "index.html").read_text().replace('"litertjs/', f'"{elsewhere}')
        (folder / "index.html").write_text(page)
        with _hosted(folder) as address, _serving(folder) as isolated:
            for place, threads in ((address, False), (isolated, True)):
                _open(browser, place, tmp_path)
                assert browser.js("crossOriginIsolated") == threads
                _upscale(browser, path)
                assert _difference(_download(browser, path), _expected(complete, lr, 0.5)) <= 1
            assert not browser.problems()
            (folder / "broken.html").write_text(page.replace("network%20", "missing"))
            _open(browser, f"{address}broken.html", tmp_path)
            _choose(browser, path)
            _click(browser, "start")
            browser.wait("error()")
            assert browser.js("error()").endswith("be loaded: check the connection and the server.")
            assert browser.js("state") == "chosen"
            browser.problems()  # of the missing file


@contextlib.contextmanager
def _hosted(folder, headers=()):
    """Serves a folder as any static host does, with further headers."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        extensions_map = {".js": "text/javascript", ".html": "text/html", "": "text/plain"}

        def end_headers(self):
            for name, value in dict(headers).items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


@pytest.mark.slow
def test_the_bundled_pair_makes_upscale_pys_pixels(browser, npm_folder, pairs, tmp_path):
    generators = [weights.load_generator(name) for name in weights.BUNDLED_PAIR]
    folder = tmp_path / "page"
    web.export(generators, folder, quantize="float16", runtime=npm_folder, pairs=pairs)
    path = tmp_path / "photo.png"
    lr = save_photograph(path, 60, 270)
    files = [folder / f"{name}.float16.tflite" for name in weights.BUNDLED_PAIR]
    network = upscaling.blended(*map(exported.load, files), 0.5)
    with _serving(folder) as address:
        _open(browser, address, tmp_path)
        _upscale(browser, path)
        assert browser.js("pieces[1].length") == 2
        assert _difference(_download(browser, path), upscaling.upscale(network, lr)) <= 1


@pytest.mark.slow
def test_webgpu_makes_the_same_pixels_and_falls_back_to_the_cpu(
    browser, address, complete, tmp_path
):
    """`browser` stands for its check that Chromium is there: this one emulates a GPU."""
    import chromium

    flags = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
    flags += ["--enable-features=Vulkan", "--use-vulkan=swiftshader"]
    gpu = chromium.Chromium(tmp_path / "profile", *flags)
    try:
        lr = save_photograph(tmp_path / "photo.png", 40, 50)
        folder = tmp_path / "refused"
        shutil.copytree(complete, folder)
        runtime = folder / "litertjs" / "core" / "dist" / "index.js"
        start = "async loadAndCompile(model, compileOptions = {}) {"
        refusal = "if (compileOptions.accelerator === 'webgpu') throw new Error('no such kernel');"
        runtime.write_text(runtime.read_text().replace(start, start + refusal))
        with _serving(folder) as refused:
            for place, processor in ((address, "GPU"), (refused, "CPU")):
                _open(gpu, place, tmp_path)
                _upscale(gpu, tmp_path / "photo.png")
                assert gpu.js("$('status').textContent").endswith(f"on the {processor}")
                result = _download(gpu, tmp_path / "photo.png")
                assert _difference(result, _expected(complete, lr, 0.5)) <= 2
        assert not gpu.problems()
    finally:
        gpu.quit()


# Selenium needs geckodriver for Firefox, which Debian lacks; puppeteer-core needs none.
_FIREFOX = """
import puppeteer from "puppeteer-core";
const [address, photo] = process.argv.slice(2);
const browser = await puppeteer.launch(
  {browser: "firefox", executablePath: "/usr/bin/firefox-esr", headless: true});
try {
  const page = await browser.newPage();
  await page.goto(address);
  await (await page.$("#file")).uploadFile(photo);
  await page.waitForFunction("state === 'chosen'");
  await page.click("#start");
  await page.waitForFunction("state === 'done' || !$('error').hidden", {timeout: 60_000});
  console.log(await page.evaluate(`new Promise((resolve) => {
    worker.onmessage = ({data: {blob}}) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result.split(",")[1]);
      reader.readAsDataURL(blob);
    };
    download();
  })`));
} finally {
  await browser.close();
}
"""


@pytest.mark.slow
def test_firefox_makes_the_same_pixels(address, complete, npm_folder, tmp_path):
    folder = npm_folder.parents[1]
    if not Path("/usr/bin/firefox-esr").exists():
        pytest.skip("no Firefox: apt-get install firefox-esr")
    _install(folder, "puppeteer-core@24.43.1")
    script = folder / "firefox.mjs"
    script.write_text(_FIREFOX)
    lr = save_photograph(tmp_path / "photo.png", 40, 50)
    command = ["node", script, address, tmp_path / "photo.png"]
    output = subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
    result = np.asarray(Image.open(io.BytesIO(base64.b64decode(output.stdout))))
    assert _difference(result, _expected(complete, lr, 0.5)) <= 1
