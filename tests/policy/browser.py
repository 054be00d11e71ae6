"""A browser without a window, for the tests of pages: driven by the DevTools protocol."""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from websockets.sync.client import ClientConnection, connect

PATIENCE = 60.0  # s; long, because it passes only where something is wrong
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Tab:
    """A tab; remembers what it asked for, and errors."""

    def __init__(self, connection: ClientConnection):
        self._connection, self._n = connection, 0
        self.urls: dict[str, str] = {}  # by request; without what the page's policy kept back
        self.errors: list[str] = []
        for domain in ("Network", "Log", "Runtime", "Page"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: object) -> dict:
        self._n += 1
        self._connection.send(json.dumps({"id": self._n, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(PATIENCE))
            if message.get("id") == self._n:
                assert "error" not in message, message
                return message["result"]
            self._take_event(message["method"], message["params"])

    def _take_event(self, name: str, event: dict) -> None:
        if name == "Network.requestWillBeSent":
            self.urls[event["requestId"]] = event["request"]["url"]
        elif name == "Network.webSocketCreated":
            self.urls[event["requestId"]] = event["url"]
        elif name == "Network.loadingFailed" and event.get("blockedReason") == "csp":
            self.urls.pop(event["requestId"], None)
        elif name == "Runtime.exceptionThrown":
            self.errors.append(str(event["exceptionDetails"]))
        elif name == "Log.entryAdded" and event["entry"]["level"] == "error":
            self.errors.append(event["entry"]["text"])

    def evaluate(self, script: str):
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def forget(self) -> None:
        """What was asked for and logged until now."""
        self.urls.clear()
        self.errors.clear()

    def open(self, url: str, ready: str = "true") -> None:
        self.call("Page.navigate", url=url)
        self.wait(f"document.readyState === 'complete' && ({ready})")

    def wait(self, script: str) -> None:
        wait_until(lambda: self.evaluate(script), script)

    def text(self, selector: str) -> str:
        return self.evaluate(f"document.querySelector({json.dumps(selector)}).textContent")

    def key(self, key: str, *, shift: bool = False) -> None:
        modifiers = {"modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **modifiers)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, **modifiers)

    def resize(self, width: int, height: int, *, scheme: str = "light") -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if width < 500 else 1,
            mobile=width < 500,
        )
        preferred = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[preferred])

    def photograph(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


def wait_until(is_true: Callable[[], bool], what: str = "") -> None:
    end = time.monotonic() + PATIENCE
    while not is_true():
        assert time.monotonic() < end, f"{what} did not come true"
        time.sleep(0.02)


@contextmanager
def opened(folder: Path) -> Iterator[Tab]:
    """A tab of a browser of its own; skips the test where there is none."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        pytest.skip("there is no Chromium to look at the page with (apt-get install chromium)")
    # No connections on suspicion: a server that ends waits for the silent ones to time out.
    (folder / "Default").mkdir()
    preferences = {"net": {"network_prediction_options": 2}}
    (folder / "Default" / "Preferences").write_text(json.dumps(preferences))
    command = [browser, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            told = folder / "DevToolsActivePort"
            wait_until(lambda: told.exists() and told.read_text().count("\n") > 0)
            address = f"http://127.0.0.1:{told.read_text().split()[0]}/json"
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

            def pages() -> list[dict]:
                with opener.open(address, timeout=PATIENCE) as answer:
                    return [each for each in json.load(answer) if each["type"] == "page"]

            wait_until(lambda: bool(pages()))
            with connect(
                pages()[0]["webSocketDebuggerUrl"], proxy=None, max_size=None
            ) as connection:
                yield Tab(connection)
        finally:
            process.terminate()
