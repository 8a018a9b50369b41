import sys

import numpy as np
import pytest
from conftest import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="benchmarks read /proc")


@pytest.fixture
def turns(load_script):
    return load_script("benchmarks/turns.py")


@pytest.fixture
def contender(tmp_path):
    """A command that notes its turns in tmp_path/order: (name, answer, what else to do)."""

    def command(name, answer=(1.0,), *, before="", work="", serve=""):
        return [
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
            f"import time, numpy as np, turns\n"
            f"def work():\n"
            f"    open({str(tmp_path / 'order')!r}, 'a').write({name!r})\n"
            f"    {work}\n"
            f"{before}\n"
            f"turns.serve(work, np.array({answer!r}), {serve})\n",
        ]

    return command


def test_contenders_take_turns_and_each_round_starts_with_the_next_one(turns, contender, tmp_path):
    commands = {name: contender(name, [float(ord(name))]) for name in "ABC"}
    results = turns.compare(commands, rounds=4)
    assert (tmp_path / "order").read_text() == "ABC" + "BCA" + "CAB" + "ABC"
    assert list(results) == ["A", "B", "C"]
    for name, result in results.items():
        assert len(result.seconds) == 4
        assert result.answer == [ord(name)]
        assert 1 < result.megabytes < 1000


def test_a_turn_of_several_repeats_reports_the_seconds_of_one(turns, contender, tmp_path):
    slow = contender("A", work="time.sleep(0.1)", serve="times=3, gflop=2.5")
    results = turns.compare({"A": slow}, rounds=2)
    assert (tmp_path / "order").read_text() == "A" * 6
    assert 0.1 <= min(results["A"].seconds) < 0.3
    assert results["A"].facts == {"gflop": 2.5}


def test_work_beside_another_takes_turns_with_it_in_one_process(turns, contender, tmp_path):
    other = f"beside=lambda: (open({str(tmp_path / 'order')!r}, 'a').write('b'), time.sleep(0.3))"
    results = turns.compare({"A": contender("A", serve=f"times=2, {other}")}, rounds=3)
    assert (tmp_path / "order").read_text() == "AAbb" + "bbAA" + "AAbb"
    assert len(results["A"].seconds) == len(results["A"].beside) == 3
    assert max(results["A"].seconds) < 0.3 <= min(results["A"].beside)


def test_a_failed_contender_is_named_with_its_last_line_and_the_others_continue(
    turns, contender, tmp_path
):
    commands = {
        "at once": contender("X", before="raise ValueError('no weights')"),
        "later": contender("L", work="len(open(sys.path[0] + '/none'))"),
        "without a word": contender("W", before="sys.exit()"),
        "sound": contender("S"),
    }
    results = turns.compare(commands, rounds=3)
    assert results["at once"] == "ValueError: no weights"
    assert results["later"].startswith("FileNotFoundError")
    assert results["without a word"] == "no word"
    assert len(results["sound"].seconds) == 3
    assert (tmp_path / "order").read_text() == "LSSS"
    assert "failed: ValueError: no weights" in turns.table(results, "sound")
    assert turns.compared(results, "sound", 0) == (
        [],
        [f"{name}: not compared" for name in ("at once", "later", "without a word")],
    )


def test_a_wrong_answer_is_recognized(turns, contender):
    commands = {
        "ours": contender("O", [1.0, 2.0]),
        "near": contender("N", [1.0, 2.001]),
        "far": contender("F", [1.0, 2.1]),
    }
    agree, wrong = turns.compared(turns.compare(commands, rounds=1), "ours", 0.01)
    assert agree == ["near"]
    assert wrong == ["far: its answer differs by 0.1"]


@pytest.mark.parametrize(
    ("own", "answer", "tolerance", "agrees"),
    [
        (np.uint8([1, 2]), np.uint8([2, 1]), 1, True),
        (np.uint8([0, 2]), np.uint8([255, 2]), 1, False),
        (np.array([1.0, 2.0]), np.array([1.0, np.nan]), 1, False),
        (np.ones((2, 3)), np.ones((1, 3)), 1, False),
        (np.ones(2), None, 1, False),
        (np.zeros((2, 2)), np.array([[0.1, 0.1], [0.5, 0.5]]), np.array([[0.2], [1]]), True),
        (np.zeros((2, 2)), np.array([[0.1, 0.5], [0.1, 0.1]]), np.array([[0.2], [1]]), False),
    ],
)
def test_answers_are_compared_element_by_element(turns, own, answer, tolerance, agrees):
    results = {"ours": turns.Result([1], 1, own, {}), "it": turns.Result([1], 1, answer, {})}
    agree, wrong = turns.compared(results, "ours", tolerance)
    assert agree == ["it"] * agrees
    assert len(wrong) == (not agrees)


def test_no_answer_agrees_if_ours_failed(turns):
    results = {"ours": "no word", "it": turns.Result([1.0], 1, np.ones(1), {})}
    assert turns.compared(results, "ours", 1) == ([], ["ours: not compared", "it: not compared"])
    assert "failed: no word" in turns.table(results, "ours")


def test_the_table_has_medians_ratios_and_the_share_of_the_peak(turns):
    results = {
        "ours": turns.Result([1.0, 2.0, 9.0], 100.4, None, {"gflop": 30, "peak": 20}),
        "it": turns.Result([4.0, 2.5, 5.0], 200, None, {}),
    }
    header, own, other = turns.table(results, "ours").splitlines()
    assert own.split() == ["ours", "2.000", "1.000", "9.000", "75%", "100"]
    # 2 / 4, and the median of 1 / 4, 2 / 2.5 and 9 / 5.
    assert other.split() == ["it", "4.000", "2.500", "5.000", "0.50", "0.80", "200"]
    assert header.index("MB") + 2 == len(header) == len(own) == len(other)


def test_operations_are_counted_at_the_size_of_each_layer(load_script, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    upscaling = load_script("benchmarks/upscaling.py")
    from srgan_tf import networks

    generator = networks.build_generator(residual_blocks=2, filters=4)
    weights = 81 * 3 * 4 + (2 * 2 + 1) * 9 * 4 * 4  # as large as lr
    weights += 9 * 4 * 16 * (1 + 4) + 81 * 4 * 3 * 16  # two that double it, and the last
    assert upscaling.gflop_a_pixel(generator) == pytest.approx(2e-9 * weights)
