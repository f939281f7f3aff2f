"""A browser that tests look at pages with: Chromium by its own protocol, over a pipe, so that nothing listens.

`apt-get install chromium fonts-noto-cjk` installs Debian's, with fonts for what is Japanese; CHROMIUM names another.
"""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 60  # seconds
HIGH = 10  # descriptors that nothing else has; the browser reads from 3 and writes to 4


def executable() -> str:
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    assert found, "no browser: apt-get install chromium fonts-noto-cjk, or name one in CHROMIUM"
    return found


class Page:
    """A page in a browser.

    errors: what its console said that is an error or a warning, exceptions too
    requests: all that it asked for, itself first
    """

    def __init__(self, to_browser: int, from_browser: int):
        self._to, self._from, self._left = to_browser, from_browser, b""
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._hear()).get("id") != number:
            pass
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _hear(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            assert select.select([self._from], [], [], PATIENCE)[0], "the browser does not answer"
            part = os.read(self._from, 1 << 20)
            assert part, "the browser is gone"
            self._left += part
        line, _, self._left = self._left.partition(b"\0")
        heard = json.loads(line)
        about = heard.get("params", {})
        match heard.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(about["request"]["url"])
            case "Runtime.exceptionThrown":
                self.errors.append(json.dumps(about["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if about["type"] in ("error", "warning", "assert"):
                self.errors.append(json.dumps(about["args"]))
            case "Log.entryAdded" if about["entry"]["level"] in ("error", "warning"):
                self.errors.append(json.dumps(about["entry"]))
        return heard

    def open(self, path: Path, script: bool = True) -> None:
        self.ask("Emulation.setScriptExecutionDisabled", value=not script)
        self.ask("Page.navigate", url=path.absolute().as_uri())
        self.wait_for("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        done = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait_for(self, condition: str) -> None:
        end = time.monotonic() + PATIENCE
        while not self.evaluate(condition):
            assert time.monotonic() < end, f"still not: {condition}"
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        found = f"const found = document.querySelector({json.dumps(selector)});"
        middle = "const box = found.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2];"
        box = self.evaluate(f"(() => {{ {found} found.scrollIntoView({{ block: 'center' }}); {middle} }})()")
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def press(self, key: str) -> None:
        text = {"text": key} if len(key) == 1 else {}
        codes = {"ArrowDown": 40, "ArrowUp": 38, "Escape": 27, "Tab": 9, "End": 35, "Enter": 13}
        codes |= {key: ord(key.upper())} if len(key) == 1 else {}
        self.ask("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=codes[key], **text)
        self.ask("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=codes[key])

    def type(self, text: str) -> None:
        self.ask("Input.insertText", text=text)

    def look(self, width: int, dark: bool = False, media: str = "screen") -> None:
        """What the page is shown on."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def screenshot(self, path: Path, most: int = 4000) -> None:
        """Of the page from its top, at most so many pixels of its height."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], most), "scale": 1}
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browsing(profile: Path) -> Iterator[Page]:
    """A page in a browser of its own, which ends with it. profile: a folder for what the browser keeps"""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run", "--mute-audio"]
    flags += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"]
    hears, to_browser = os.pipe()
    from_browser, says = os.pipe()
    command = f'exec {HIGH}<&{hears} {HIGH + 1}>&{says}; exec 3<&{HIGH} 4>&{HIGH + 1}; exec "$0" "$@"'
    process = subprocess.Popen(
        ["bash", "-c", command, executable(), *flags, "about:blank"],
        pass_fds=(hears, says),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(hears)
    os.close(says)
    try:
        yield Page(to_browser, from_browser)
    finally:
        os.close(to_browser)  # at which it ends
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
        os.close(from_browser)
