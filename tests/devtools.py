"""A headless Chromium to test pages with, driven over its own DevTools pipe: no driver needed."""

import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]


class Page:
    """One page of a browser of its own; `problems` collects console errors and exceptions."""

    def __init__(self, profile, seconds=60):
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        # Chromium reads its commands from descriptor 3 and answers on 4.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (commands, answers)]
        chromium = [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        with open(profile.with_suffix(".log"), "wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", 'exec "$@" 3<&{} 4>&{}'.format(*ends), "chromium", *chromium],
                pass_fds=ends,
                stdout=log,
                stderr=log,
            )
        for end in ends:
            os.close(end)
        os.close(commands)
        os.close(answers)
        self._seconds = seconds
        self._buffer = b""
        self._number = 0
        self._session = None
        self.problems = []
        self.requests = []
        [target] = [t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attach = {"targetId": target["targetId"], "flatten": True}
        self._session = self.send("Target.attachToTarget", **attach)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def _read(self, deadline):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select(
                [self._answers], [], [], max(deadline - time.monotonic(), 0)
            )
            data = os.read(self._answers, 1 << 20) if ready else b""
            if not data:
                raise TimeoutError("Chromium gave no answer")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(message)
        method, values = message.get("method"), message.get("params")
        if method == "Runtime.exceptionThrown":
            self.problems.append(str(values["exceptionDetails"]))
        elif method == "Log.entryAdded" and values["entry"]["level"] == "error":
            self.problems.append(values["entry"]["text"] + " " + values["entry"].get("url", ""))
        elif method == "Runtime.consoleAPICalled" and values["type"] in ("error", "assert"):
            self.problems.append(str(values["args"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        return message

    def send(self, method, **values):
        """Calls a method of the DevTools protocol and returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": values}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + self._seconds
        while True:
            answer = self._read(deadline)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def open(self, path, width=1200, height=900, dark=False, phone=False):
        """Opens a file and waits until it is loaded; returns the seconds that took."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=2 if phone else 1, mobile=phone)  # fmt: skip
        self.send("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.js("window.left = true")  # the page before may be this file, too
        start = time.monotonic()
        self.send("Page.navigate", url=path.resolve().as_uri())
        self.wait("!window.left && document.readyState === 'complete'")
        return time.monotonic() - start

    def js(self, expression):
        """The value of a JavaScript expression; promises are awaited."""
        answer = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def wait(self, expression):
        """Waits until a JavaScript expression is true."""
        deadline = time.monotonic() + self._seconds
        while not self.js(f"!!({expression})"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"never true: {expression}")
            time.sleep(0.05)

    def mouse(self, kind, x, y, **values):
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **values)

    def drag(self, start, end):
        """Presses the left button at start (x, y) and moves to end."""
        held = {"button": "left", "buttons": 1, "clickCount": 1}
        self.mouse("mouseMoved", *start)
        self.mouse("mousePressed", *start, **held)
        for part in (0.3, 0.6, 1):
            x, y = (a + (b - a) * part for a, b in zip(start, end, strict=True))
            self.mouse("mouseMoved", x, y, **held)
        self.mouse("mouseReleased", *end, button="left", clickCount=1)

    def key(self, key):
        """Presses and lets go a key."""
        text = {"text": key} if len(key) == 1 else {}
        code = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}
        number = {"windowsVirtualKeyCode": code.get(key, 0)}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, **number, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, **number)

    def close(self):
        """Ends the browser."""
        with contextlib.suppress(OSError, TimeoutError):
            self._session = None
            self.send("Browser.close")
        self._process.wait(timeout=20)
        os.close(self._commands)
        os.close(self._answers)
