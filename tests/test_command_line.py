import os
import subprocess
import sys

import pytest
from conftest import ROOT

# A stand-in for a script: it tells, does its work, and tells again.
_SCRIPT = """
import sys
from pathlib import Path
from absl import app, flags
from srgan_tf import command_line

def main(argv):
    with command_line.native_logs_hidden():
        print("caf\\udce9 \\u65e5", file=sys.stderr, flush=True)
    for number in range(3):
        print("caf\\udce9 \\u65e5", flush=True)
        command_line.progress_bar()(0.5, "caf\\udce9 \\u65e5")
        Path(argv[1], f"{number}").touch()
    return 0

app.run(lambda argv: command_line.exit_code(main, argv, ""))
"""


@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "export.py", "upscale.py"])
def test_help_does_not_import_numpy_keras_or_tensorflow(script):
    command = [sys.executable, "-X", "importtime", script, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"\n{script}:\n" in done.stdout and "absl" in done.stderr
    assert not any(name in done.stderr for name in ("tensorflow", "keras", "numpy"))


@pytest.mark.skipif(os.name != "posix", reason="sh")
@pytest.mark.parametrize(
    ("how", "code", "told"),
    [
        ("$COMMAND", 0, r"caf\udce9 日"),
        ("PYTHONIOENCODING=cp1252:strict $COMMAND", 0, r"caf\udce9 \u65e5"),
        ("$COMMAND 2>&-", 0, r"caf\udce9 日"),
        ("$COMMAND >&- 2>&-", 0, ""),
        ("$COMMAND | true; exit ${PIPESTATUS[0]}", 0, ""),
        ("$COMMAND 2>&1 | true; exit ${PIPESTATUS[0]}", 0, ""),
        ("$COMMAND >/dev/full", 1, "error: stdout: cannot be written (No space left on device)"),
    ],
)
def test_a_broken_progress_pipe_does_not_stop_the_work(tmp_path, how, code, told):
    (tmp_path / "script.py").write_text(_SCRIPT)
    (tmp_path / "out").mkdir()
    command = f"{sys.executable} {tmp_path}/script.py {tmp_path}/out"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COMMAND": command, "PYTHONUTF8": "1"}
    done = subprocess.run(["bash", "-c", how], env=environment, capture_output=True, timeout=60)
    output = done.stdout.decode() + done.stderr.decode()
    assert done.returncode == code, output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0", "1", "2"]
    assert told in output and "Traceback" not in output and "Errno" not in output
