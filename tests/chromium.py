"""A headless Chromium to test pages in, driven by Selenium with Debian's chromedriver."""

import json
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.support.wait import WebDriverWait

BINARY, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
_SECONDS = 60
_ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]


class Chromium(webdriver.Chrome):
    """Selenium's driver, with what our tests of pages have in common. `quit()` ends it."""

    def __init__(self, profile: Path, *arguments: str):
        """Starts a browser with a fresh profile folder, and without Selenium's downloads."""
        options = webdriver.ChromeOptions()
        options.binary_location = str(BINARY)
        for argument in [*_ARGUMENTS, f"--user-data-dir={profile}", *arguments]:
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        super().__init__(options, webdriver.ChromeService(str(DRIVER)))
        self.get("about:blank")  # instead of Chromium's own first page and its requests

    def open(self, page: Path | str, width=1200, height=900, dark=False, phone=False) -> None:
        """Opens a file or an address in a window of this size and waits until it is loaded."""
        for command, parameters in {
            "setDeviceMetricsOverride": {
                "width": width, "height": height, "deviceScaleFactor": 1 + phone, "mobile": phone
            },
            "setTouchEmulationEnabled": {"enabled": phone},
            "setEmulatedMedia": {"features": [
                {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            ]},
        }.items():  # fmt: skip
            self.execute_cdp_cmd(f"Emulation.{command}", parameters)
        self.get(page.resolve().as_uri() if isinstance(page, Path) else page)
        # On a busy machine the new size can come after the page, and taps would miss.
        self.wait(f"innerWidth === {width} && document.readyState === 'complete'")
        self.js("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def js(self, expression: str):
        """The value of a JavaScript expression; promises are awaited."""
        return self.execute_script(f"return {expression}")

    def wait(self, expression: str) -> None:
        """Waits until a JavaScript expression is true."""
        WebDriverWait(self, _SECONDS, 0.05).until(
            lambda _: self.js(f"!!({expression})"), f"never true: {expression}"
        )

    def press(self, *keys: str) -> None:
        """Presses keys, characters or constants of Selenium's `Keys`, one after the other."""
        ActionChains(self).send_keys(*keys).perform()

    def box(self, selector: str) -> list[float]:
        """An element's x, y, width and height in the window."""
        return self.js(
            "(r => [r.x, r.y, r.width, r.height])"
            f"(document.querySelector({selector!r}).getBoundingClientRect())"
        )

    def tap(self, selector: str) -> None:
        """Taps the middle of an element with a finger, once it is scrolled into view."""
        self.js(f"document.querySelector({selector!r}).scrollIntoView({{block: 'nearest'}})")
        self.drag(selector, (0.5, 0.5), (0.5, 0.5), touch=True)

    def drag(
        self, selector: str, start: tuple[float, float], end: tuple[float, float], touch=False
    ) -> None:
        """Drags within an element with the left button or a finger, (x, y) in 0..1 of its size."""
        left, top, width, height = self.box(selector)
        (down, up) = ((round(left + x * width), round(top + y * height)) for x, y in (start, end))
        kind = "touch" if touch else "mouse"
        actions = ActionBuilder(self, mouse=PointerInput(kind, kind), duration=100)
        actions.pointer_action.move_to_location(*down).pointer_down()
        actions.pointer_action.move_to_location(*up).pointer_up()
        actions.perform()

    def problems(self) -> list[str]:
        """Exceptions, failed loads and console errors since the last call."""
        entries = self.get_log("browser")
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def requests(self) -> list[str]:
        """The addresses that were requested since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.get_log("performance")]
        sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [event["request"]["url"] for event in sent]
