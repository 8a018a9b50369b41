import collections
import csv
import functools
import http.client
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import ROOT, photograph, rating_file, scored
from PIL import Image
from scipy import stats
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from srgan_tf import files
from srgan_tf.evaluation import collect, methods, mos, mos_kit, ratings, report, scoring, sets

SCORES = {"nearest": 1, "bicubic": 2, "bright": 3, "original": 5}
CALIBRATION = [photograph(64, 64, seed=seed) for seed in (9, 10, 11)]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Results of three methods on three pictures, one larger than a phone, and their folder."""
    folder = tmp_path_factory.mktemp("kept")
    bright = methods.Method("bright", lambda lr: methods.bicubic(lr) // 2 + 128, "b", {"path": "b"})
    return scored(folder, [(96, 128), (60, 60), (400, 600)], [bright]), folder / "out"


@pytest.fixture(scope="module")
def folder(kept, tmp_path_factory):
    """A kit's folder: 12 pictures to rate, 2 examples, 4 for the warm-up."""
    folder = tmp_path_factory.mktemp("kits") / "kit"
    mos_kit.write_kit(*kept, folder, CALIBRATION)
    return folder


@pytest.fixture(scope="module")
def kit(folder):
    return mos_kit.read_kit(folder)


@pytest.fixture
def evaluate(run_script):
    return functools.partial(run_script, "evaluate.py")


@pytest.fixture
def page(browser, folder, tmp_path):
    """The kit's page in a browser that remembers nothing and saves files in `tmp_path`."""
    settings = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", settings)
    # localStorage.clear() would reach the next page's process too late at times.
    browser.get("about:blank")
    browser.execute_cdp_cmd(
        "Storage.clearDataForOrigin", {"origin": "file:///", "storageTypes": "local_storage"}
    )
    browser.open(folder / "index.html")
    yield browser
    assert not browser.problems()
    assert all(url.startswith(("file:", "blob:", "data:")) for url in browser.requests())


def _shown(page, but=None):
    """Waits until a picture can be rated, another one than `but`: its file."""
    page.wait(
        "performance.now() - shownAt > SOONEST && document.querySelector('#stage img').naturalWidth"
        f" && shown !== {json.dumps(but)}"
    )
    return page.js("shown")


def _start(page, alias):
    """Enters an alias and looks at both examples, by keyboard."""
    page.wait("document.activeElement.id === 'alias'")
    page.press(alias, Keys.ENTER)
    for _ in range(2):
        _shown(page)
        page.press(Keys.ENTER)


def _rate(page, kit, count, rate):
    """Rates some pictures, each as its method deserves: their files."""
    files = [None]
    for _ in range(count):
        files.append(_shown(page, but=files[-1]))
        rate(kit.calibration.get(files[-1]) or SCORES[kit.items[files[-1]].method])
    return files[1:]


def test_evaluate_writes_a_kit_of_exact_pictures_that_names_no_method(evaluate, kept, tmp_path):
    data = kept[1].parent / "Set5"
    command = [f"--data={data}", "--weights=", f"--mos={tmp_path / 'kit'}", "--mos_pictures=2"]
    code, out, err = evaluate(*command)
    assert code == 0 and "bicubic" in out and str(tmp_path / "kit" / "index.html") in out
    kit = mos_kit.read_kit(tmp_path / "kit")
    assert len(kit.items) == 2 * 3 and len(kit.calibration) == 12
    assert list(kit.variants) == ["nearest", "bicubic", "original"]
    for file, (_, picture, method) in kit.items.items():
        lr, hr = sets.read_pair(sets.Pair(picture, data / f"{picture}.png", None))
        expected = hr if method == "original" else getattr(methods, method)(lr)
        np.testing.assert_array_equal(Image.open(tmp_path / "kit" / "pictures" / file), expected)
    assert {f.name for f in (tmp_path / "kit" / "pictures").iterdir()} == kit.files
    text = (tmp_path / "kit" / "index.html").read_text()
    assert not any(word in text for word in (*kit.variants, "Set5"))

    code, _, err = evaluate(*command)
    assert (code, len(err.splitlines())) == (1, 1) and "exists already" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mos=kit", "--out_dir=kit"], "kit: --out_dir lies there; choose another folder for"),
        (["--mos=kit", "--out_dir=link/../kit/out"], "kit: --out_dir lies there"),
        (["--mos=link"], "link: exists already"),
        (["--mos=dangling"], "dangling: exists already"),
        (["--mos=kit", "--out_dir=other"], "other/mos.json: no mean opinion scores; remove it"),
    ],
)
def test_problems_with_writing_a_kit_are_reported_before_scoring(
    evaluate, kept, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mos.json").write_text("{}")
    monkeypatch.setattr(scoring, "evaluate", None)
    code, _, err = evaluate(f"--data={kept[1].parent / 'Set5'}", "--weights=", *arguments)
    assert (code, len(err.splitlines())) == (1, 1) and message in err


def test_raters_are_never_calibrated_on_a_picture_that_they_rate(tmp_path):
    for name, size, seed in (
        ("rated/a.png", 64, 1), ("others/a again.bmp", 64, 1), ("others/b.png", 500, 2),
        ("others/c.png", 64, 3),
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(photograph(size, 64, seed)).save(tmp_path / name)
    rated = sets.open_sets([str(tmp_path / "rated")])
    chosen = mos_kit.calibration_pictures(tmp_path / "others", rated)
    assert sorted(hr.shape for hr in chosen) == [(64, 64, 3), (384, 64, 3)]
    # The sample pictures can be rated too: gray ones are left to calibrate on.
    assert len(mos_kit.calibration_pictures(None, sets.open_sets(["sample"]))) == 4


def test_a_whole_kit_is_rated_by_keyboard_with_a_reload_and_a_step_back(
    page, folder, kit, evaluate, tmp_path
):
    _start(page, "Ann")
    warm_up = _rate(page, kit, 4, lambda score: page.press(str(score)))
    assert sorted(warm_up) == sorted(kit.calibration)
    page.press(Keys.ENTER)
    files = _rate(page, kit, 5, lambda score: page.press(str(score)))
    page.open(folder / "index.html")
    assert "Ann: 5 of 12" in page.js("document.getElementById('welcome').innerText")
    page.press(Keys.ENTER)
    sixth = _shown(page)
    page.press("1" if SCORES[kit.items[sixth].method] != 1 else "4")  # a mistake
    _shown(page, but=sixth)
    page.press(Keys.BACKSPACE)
    assert _shown(page) == sixth
    pressed = "document.querySelectorAll('#scores [aria-pressed=true]').length"
    assert page.js(pressed) == 1
    files += _rate(page, kit, 7, lambda score: page.press(str(score)))
    assert sorted(files) == sorted(kit.items)
    page.wait("!document.getElementById('end').hidden")
    page.press(Keys.ENTER)

    def saved():
        return [path for path in tmp_path.glob("ratings-Ann-*.json") if path.stat().st_size]

    WebDriverWait(page, 20).until(lambda _: saved())
    document = json.loads(saved()[0].read_text())
    assert set(document) == {
        "format", "kit", "alias", "seed", "calibration", "ratings", "checksum"
    }  # fmt: skip
    assert [file for file, _ in document["ratings"]] == files
    code, out, _ = evaluate(f"--mos_ratings={tmp_path}", f"--mos={folder}")
    assert code == 0 and "Failed calibration" not in out
    for method, score in SCORES.items():
        [line] = [line for line in out.splitlines() if line.startswith(f"{method}  ")]
        assert line.split()[1] == f"{score}.00"


def test_a_kit_is_rated_by_touch_on_a_phone(page, folder, kit):
    page.open(folder / "index.html", width=360, height=740, phone=True)
    page.js("document.getElementById('alias').value = 'Bo'")
    page.tap("#form button")
    for _ in range(2):
        _shown(page)
        page.tap("#next")
    _rate(page, kit, 4, lambda score: page.tap(f"#scores button:nth-child({score})"))
    page.tap("#begin")
    for _ in range(12):
        file = _shown(page)
        shown = page.js(
            "(i => [i.naturalWidth, i.getBoundingClientRect().width, devicePixelRatio,"
            " document.documentElement.scrollWidth,"
            " document.querySelector('footer').getBoundingClientRect().bottom])"
            "(document.querySelector('#stage img'))"
        )
        natural, width, ratio, page_width, bottom = shown
        assert width * ratio == natural * 2 and (page_width, bottom) == (360, 740)
        page.tap(f"#scores button:nth-child({SCORES[kit.items[file].method]})")
        page.wait(f"shown !== '{file}' || !document.getElementById('end').hidden")
    assert page.js("document.getElementById('end').innerText").startswith("Thank you")


def test_each_rater_gets_a_different_order_and_anonymous_names(page, kit):
    items = json.dumps([[file, item.picture] for file, item in kit.items.items()])
    orders = page.js(f"Array.from({{length: 200}}, () => shuffled({items}, generator(drawSeed())))")
    files = [[file for file, _ in order] for order in orders]
    assert len({tuple(order) for order in files}) > 190
    assert all(sorted(order) == sorted(kit.items) for order in files)
    for order in orders:
        assert all(a != b for (_, a), (_, b) in itertools.pairwise(order))
    # Each file has come first about as often as any other, so names say nothing about the order.
    assert len({order[0] for order in files}) == len(kit.items)


def test_names_do_not_tell_methods(kept, tmp_path):
    seen = collections.defaultdict(set)
    for number in range(12):
        mos_kit.write_kit(*kept, tmp_path / str(number), CALIBRATION[:2])
        for file, item in mos_kit.read_kit(tmp_path / str(number)).items.items():
            seen[file].add(item.method)
    assert max(map(len, seen.values())) == len(SCORES)


def test_pictures_are_loaded_before_their_turn(page, kit):
    _start(page, "Cy")
    page.requests()
    _rate(page, kit, 1, lambda score: page.press(str(score)))
    _shown(page)
    page.wait("document.querySelector('#stage img').complete")
    ahead = page.js("trials.slice(at, at + 1 + AHEAD).map(([file]) => file)")
    assert page.js(f"{json.dumps(ahead)}.every((file) => images.has(file))")
    assert page.js(
        f"Promise.all({json.dumps(ahead)}.map((file) => images.get(file)))"
        ".then((loaded) => loaded.every((image) => image.complete && image.naturalWidth > 0))"
    )


def test_a_zoomed_page_warns_and_pictures_keep_whole_pixels(page):
    _start(page, "Di")
    _shown(page)
    warned = "!document.getElementById('zoom').hidden"
    assert not page.js(warned)
    for ratio in (1.25, 1.5, 2):
        page.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": int(1200 / ratio), "height": 700, "deviceScaleFactor": ratio,
             "mobile": False},
        )  # fmt: skip
        size = f"{ratio} * image.getBoundingClientRect().width - {int(ratio)} * image.naturalWidth"
        image = "document.querySelector('#stage img')"
        whole = f"((image) => Math.abs({size}) < 0.05)({image})"
        page.wait(f"{warned} && {whole}")
        before = _shown(page)
        page.press("3")
        _shown(page, but=before)
        assert page.js(whole)


def test_every_control_is_reached_by_tab(page):
    _start(page, "Ed")
    _shown(page)
    page.press("1")
    _shown(page)
    reached = []
    for _ in range(9):
        page.press(Keys.TAB)
        reached.append(page.js("document.activeElement.id || document.activeElement.innerText[0]"))
    assert {"back", "save", "stage", *"12345"} <= set(reached)


def test_fifty_simulated_raters_have_the_figures_that_scipy_computes(kit):
    generator = np.random.default_rng(5)
    means = {"nearest": 1.2, "bicubic": 2.4, "bright": 2.5, "original": 4.6}

    def rater(number):
        taste = generator.normal(0, 0.4)
        scores = {
            item: np.clip(round(generator.normal(means[item.method] + taste, 0.8)), 1, 5)
            for item in sorted(kit.items.values())
        }
        return rating_file(kit, f"rater {number}", scores.get)

    counted = [ratings.parse(rater(number), kit) for number in range(50)]
    summary = mos.summarize(kit, counted)
    scored = {
        method: np.array(
            [
                [r.scores[file] for file, item in sorted(kit.items.items(), key=lambda i: i[1])
                 if item.method == method]
                for r in counted
            ]
        )
        for method in SCORES
    }  # fmt: skip
    for method, row in summary["sets"]["Set5"]["methods"].items():
        values = scored[method]
        assert row["mos"] == values.mean() and row["ratings"] == 150
        assert row["counts"] == np.bincount(values.ravel(), minlength=6)[1:].tolist()
        expected = stats.bootstrap(
            (np.arange(50), np.arange(3)),
            lambda raters, pictures, values=values: values[np.ix_(raters, pictures)].mean(),
            vectorized=False, method="percentile", n_resamples=3000, rng=7,
        ).confidence_interval  # fmt: skip
        assert row["interval"] == pytest.approx(expected, abs=0.04)
        assert row["interval"][0] < row["mos"] < row["interval"][1]
    tests = {tuple(test["methods"]): test for test in summary["sets"]["Set5"]["tests"]}
    assert len(tests) == 6
    for (first, second), test in tests.items():
        a, b = scored[first].ravel(), scored[second].ravel()
        assert test["p"] == pytest.approx(stats.wilcoxon(a, b).pvalue, rel=1e-9)
        assert test["difference"] == pytest.approx(b.mean() - a.mean())
    assert tests["nearest", "original"]["holm"] < 1e-6
    assert tests["bicubic", "bright"]["holm"] > 0.05
    assert 0.3 < summary["alpha"] < 0.9
    paper = [row["paper"] for row in summary["sets"]["Set5"]["methods"].values()]
    assert paper == [1.28, 1.97, None, 4.32]


def test_holm_multiplies_the_smallest_p_most_and_keeps_the_order():
    # The example of R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm").
    assert mos.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_raters_who_agree_have_alpha_1_and_a_single_rater_has_no_interval(kit):
    agree = [
        ratings.parse(rating_file(kit, alias, lambda item: SCORES[item.method]), kit)
        for alias in "ab"
    ]
    both, one = mos.summarize(kit, agree), mos.summarize(kit, agree[:1])
    assert both["alpha"] == 1 and one["alpha"] is None
    assert both["sets"]["Set5"]["methods"]["bicubic"]["interval"] == [2, 2]
    assert one["sets"]["Set5"]["methods"]["bicubic"]["interval"] is None
    same = ratings.parse(rating_file(kit, "same", lambda item: 3), kit)
    assert {test["p"] for test in mos.summarize(kit, [same])["sets"]["Set5"]["tests"]} == {1}


def _score(item):
    return SCORES[item.method]


def test_files_that_cannot_be_counted_are_named_and_the_others_counted(
    evaluate, folder, kit, tmp_path
):
    def edited(alias, change):
        document = json.loads(rating_file(kit, alias, _score))
        change(document)
        return json.dumps(document).encode()

    def without(number):
        pairs = [[file, 3] for file in kit.items]
        return {"ratings": pairs[:number]}

    def scoring_first(score):
        return {"ratings": [[next(iter(kit.items)), score], *without(12)["ratings"][1:]]}

    good = rating_file(kit, "good", _score)
    bad = {
        "cut.json": (good[:100], "not a rating file"),
        "list.json": (b"[]", "not a rating file"),
        "deep.json": (b"[" * 100_000, "not a rating file"),
        "binary.json": (bytes(range(256)), "not a rating file"),
        "empty.json": (b"", "not a rating file"),
        "foreign.json": (rating_file(kit, "foreign", _score, kit="0" * 16), "another kit"),
        "edited.json": (
            edited("edited", lambda d: d["ratings"][0].__setitem__(1, 5 - d["ratings"][0][1] // 5)),
            "changed after it was saved",
        ),
        "renamed.json": (edited("x", lambda d: d.update(alias="y")), "changed after it was saved"),
        "partial.json": (
            rating_file(kit, "partial", _score, **without(11)),
            "partial: 11 of 12 rated",
        ),
        "six.json": (rating_file(kit, "six", _score, **scoring_first(6)), "6 is not an integer"),
        "half.json": (rating_file(kit, "half", _score, **scoring_first(2.5)), "2.5 is not an int"),
        "true.json": (rating_file(kit, "true", _score, **scoring_first(True)), "True is not an"),
        "path.json": (
            rating_file(kit, "path", _score, ratings=[["\x1b[2J", 3]]), "not one of the kit's",
        ),
        "twice.json": (
            rating_file(kit, "twice", _score, ratings=without(1)["ratings"] * 2), "scored twice",
        ),
        "good, copied.json": (good, "the same session as"),
        "good, again.json": (rating_file(kit, "GOOD", _score), "the same alias as"),
        "controls.json": (rating_file(kit, "\x1b[31m", _score), "printable characters"),
    }  # fmt: skip
    (tmp_path / "a.json").write_bytes(good)
    (tmp_path / "b.json").write_bytes(rating_file(kit, "Zoë 東京 🙂", _score))
    wrong = [[file, 6 - score] for file, score in kit.calibration.items()]
    (tmp_path / "c.json").write_bytes(rating_file(kit, "upside down", _score, calibration=wrong))
    for name, (content, _) in bad.items():
        (tmp_path / name).write_bytes(content)
    code, out, err = evaluate(
        f"--mos_ratings={tmp_path}", f"--mos={folder}", f"--out_dir={tmp_path / 'out'}"
    )
    assert code == 2 and "3 raters" in out and "Failed calibration: upside down" in out
    lines = err.splitlines()
    assert len(lines) == len(bad) and all(line.isprintable() for line in lines)
    for name, (_, reason) in bad.items():
        [line] = [line for line in lines if line.startswith(f"skipped: {tmp_path / name}: ")]
        assert reason in line
    document = json.loads((tmp_path / "out" / "mos.json").read_text())
    assert document["raters"] == ["good", "Zoë 東京 🙂", "upside down"]
    assert len(document["skipped"]) == len(bad)
    with (tmp_path / "out" / "mos.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert rows["nearest"]["mos"] == "1.0" and rows["nearest"]["paper"] == "1.28"

    code, out, _ = evaluate(
        f"--mos_ratings={tmp_path / 'a.json'}", f"--mos_ratings={tmp_path / 'c.json'}",
        f"--mos={folder}", "--mos_calibrated",
    )  # fmt: skip
    assert code == 0 and "1 rater\n" in out and "they failed calibration: upside down" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mos_pictures=3"], "--mos_pictures needs --mos"),
        (["--mos_calibrated"], "--mos_calibrated needs --mos_ratings"),
        (["--mos_ratings=.", "--data=x", "--lpips"], "without --data, --lpips"),
        (["--mos_ratings=nowhere"], "nowhere: no such file or folder"),
        (["--mos_ratings=empty"], "empty: no rating files"),
        (["--mos_ratings=alone.json"], "alone.json: no kit.json there; set --mos"),
    ],
)
def test_mistakes_are_told_in_one_line(evaluate, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "alone.json").write_text("{}")
    code, _, err = evaluate(*arguments)
    assert (code, len(err.splitlines())) == (1, 1) and message in err


def test_a_changed_key_is_refused(folder, tmp_path):
    text = (folder / "kit.json").read_text()
    (tmp_path / "kit.json").write_text(text.replace('"bicubic"', '"nearest"', 1))
    with pytest.raises(ValueError, match="changed after its kit was written"):
        mos_kit.read_kit(tmp_path)


def test_the_report_shows_the_scores_before_and_after_the_pictures_are_scored(
    browser, kept, folder, kit, evaluate, tmp_path
):
    results, out_dir = kept
    for alias in "abc":
        (tmp_path / f"{alias}.json").write_bytes(rating_file(kit, alias, _score))
    counting = [f"--mos_ratings={tmp_path}", f"--mos={folder}", f"--out_dir={out_dir}"]
    heading = "<h2>Mean opinion scores</h2>"

    code, out, _ = evaluate(*counting)
    page = out_dir / "report.html"
    assert code == 0 and str(page) in out
    alone = page.read_text()
    assert alone.count(heading) == 1 and "Picture by picture" not in alone
    report.write_report(results, out_dir)
    assert page.read_text().count(heading) == 1
    evaluate(*counting)
    text = page.read_text()
    assert text.count(heading) == 1 and "Picture by picture" in text

    for dark in (False, True):
        browser.open(page, width=360, height=740, dark=dark, phone=True)
        assert browser.js("document.documentElement.scrollWidth") == 360
    section = browser.js("document.querySelector('.opinions').innerText")
    for method, score in SCORES.items():
        assert f"{method}\t{score}.00" in section
    cells, means = browser.js(
        "[[...document.querySelectorAll('.cells i')].map(c => c.innerText),"
        " [...document.querySelectorAll('.cells b')].map(b => parseFloat(b.style.left))]"
    )
    assert [cells[5 * i : 5 * i + 5].index("100%") + 1 for i in range(4)] == list(SCORES.values())
    assert means == [10, 30, 50, 90]
    assert not browser.problems()


@pytest.fixture
def collector(kept, tmp_path):
    """A running collector of a new kit."""
    mos_kit.write_kit(*kept, tmp_path / "kit", CALIBRATION[:2])
    with collect.Collector(tmp_path / "kit", "localhost", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def _ask(port, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("localhost", port, timeout=30)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def _collected(server):
    paths = sorted(server.collected.iterdir())
    return ratings.read_files(paths, server.kit)


def test_fifty_raters_who_send_at_once_lose_nothing(collector, monkeypatch):
    files = [rating_file(collector.kit, f"rater {i}", _score) for i in range(50)]
    post = functools.partial(_ask, collector.server_port, "POST", "/ratings")
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(post, files * 2))  # each sends twice, as after a lost answer
    assert {status for status, _ in answers} == {200}
    counted, skipped = _collected(collector)
    assert {r.alias for r in counted} == {f"rater {i}" for i in range(50)} and not skipped
    assert {path.read_bytes() for path in collector.collected.iterdir()} == set(files)

    monkeypatch.setattr(collect.os, "fsync", lambda _: time.sleep(0.05))  # a slow disk
    one = [rating_file(collector.kit, "one", _score, seed=f"{i:032x}") for i in range(20)]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(post, one))
    assert sorted(status for status, _ in answers) == [200] + 19 * [409]


def test_the_collector_refuses_invalid_ratings_and_stores_nothing(collector):
    post = functools.partial(_ask, collector.server_port, "POST", "/ratings")
    good = rating_file(collector.kit, "Fay", _score)
    assert post(good)[0] == 200
    other = rating_file(collector.kit, "Fay", lambda item: 3)
    assert post(other)[0] == 409
    taken = rating_file(collector.kit, "fay", _score)
    assert post(taken) == (409, b"The alias fay is taken. Choose another one and send again.")
    assert post(b"{}")[0] == post(good[:-9])[0] == 400
    partial = rating_file(collector.kit, "part", _score, ratings=[])
    assert post(partial)[0] == 400
    assert post(b"{}", **{"Content-Length": "1000001"})[0] == 413
    assert post(b"{}", **{"Content-Length": "-1"})[0] == 411
    assert _ask(collector.server_port, "POST", "/kit.json", good)[0] == 404
    assert [r.alias for r in _collected(collector)[0]] == ["Fay"]


def test_the_collector_serves_the_page_and_its_pictures_and_nothing_else(collector):
    get = functools.partial(_ask, collector.server_port, "GET")
    file = min(collector.kit.files)
    assert get(f"/pictures/{file}")[1] == (collector.folder / "pictures" / file).read_bytes()
    assert get("/") == get("/index.html") and b"data-collected" in get("/")[1]
    _ask(collector.server_port, "POST", "/ratings", rating_file(collector.kit, "Gus", _score))
    [collected] = [path.name for path in collector.collected.iterdir()]
    for path in (
        "/kit.json", "/pictures/../kit.json", "/pictures/..%2fkit.json",
        "/pictures/%2e%2e/kit.json", "//kit.json", "/./kit.json", f"/ratings/{collected}",
        "/ratings", "/pictures/", file,
        "/../../etc/passwd", "/pictures//etc/passwd", f"{collector.folder}/kit.json",
    ):  # fmt: skip
        assert get(path)[0] == 404, path


def test_ratings_are_sent_from_the_browser(browser, collector):
    browser.open(f"http://localhost:{collector.server_port}/")
    kit = collector.kit
    _start(browser, "Hal")
    _rate(browser, kit, 2, lambda score: browser.press(str(score)))
    browser.press(Keys.ENTER)
    _rate(browser, kit, 12, lambda score: browser.press(str(score)))
    browser.wait("!document.getElementById('end').hidden")
    browser.press(Keys.ENTER)
    browser.wait("document.getElementById('answer').textContent.includes('have arrived')")
    [sent] = _collected(collector)[0]
    assert sent.alias == "Hal" and sent.is_calibrated(kit)
    assert {kit.items[file].method: score for file, score in sent.scores.items()} == SCORES
    assert not browser.problems()


def test_a_killed_collector_loses_nothing_that_it_acknowledged(folder, kit):
    command = [sys.executable, "-m", "srgan_tf.evaluation.collect", f"--kit={folder}", "--port=0"]
    sent = {alias: rating_file(kit, alias, _score) for alias in ("Ida", "Jo")}
    (folder / "ratings").mkdir()
    # What a server that was killed before its answer leaves is none of the ratings.
    (folder / "ratings" / ".making-0.json").write_bytes(sent["Ida"])
    (folder / "ratings" / "folder.json").mkdir()
    for body in sent.values():
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        try:
            port = int(server.stdout.readline().split()[0].rpartition(":")[2])
            assert _ask(port, "POST", "/ratings", body)[0] == 200
        finally:
            server.kill()
            server.wait()
            server.stdout.close()
    kept = [path.read_bytes() for path in ratings.files_in(folder / "ratings")]
    assert sorted(kept) == sorted(sent.values())


@pytest.fixture
def refusal(kept, tmp_path, monkeypatch, capsys):
    """A kit's folder, and a function that returns the line with which the collector refuses it."""
    folder = tmp_path / "kit"
    mos_kit.write_kit(*kept, folder, CALIBRATION[:2])
    (folder / "ratings").mkdir()
    monkeypatch.setattr(collect.Collector, "serve_forever", lambda self: None)

    def refuse():
        collect.FLAGS(["collect", f"--kit={folder}", "--port=0"])
        assert collect.run(["collect"]) == 1
        [line] = capsys.readouterr().err.splitlines()
        return line

    return folder, refuse


@pytest.mark.skipif(os.name != "posix", reason="locks")
def test_a_second_collector_of_a_kit_is_refused(refusal):
    folder, refuse = refusal
    with files.locked(folder / "ratings", ""):
        assert refuse() == f"error: {folder / 'ratings'}: another collector writes there"


def test_a_kit_without_its_page_is_refused_in_one_line(refusal):
    folder, refuse = refusal
    (folder / "index.html").unlink()
    assert refuse().startswith(f"error: {folder / 'index.html'}: cannot be read (No such file")
