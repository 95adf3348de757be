"""A real browser for tests of pages: chromium, spoken to over a pipe in its DevTools protocol, with no package between.

What a page does is counted, not guessed: scripts that ran, and addresses that were asked for.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--remote-debugging-pipe",
)  # fmt: skip
WIDTHS = (360, 768, 1280)
"""CSS pixels: a phone, a tablet, a desk."""
SCHEMES = ("light", "dark")
AXE_PACKAGES = ("axe_playwright_python", "axe_core_python")
"""That bring axe-core. The extra `browser` has the second, which needs nothing else; the first is newer."""
COUNTER = "window.ran = 0; for (const name of ['alert', 'confirm', 'prompt']) window[name] = () => { window.ran += 1 }"
"""An attack that runs calls `alert`."""
TOUCHED = (
    "document.querySelectorAll('*').forEach(one => { if (one.focus) one.focus();"
    " for (const name of ['mouseover', 'pointerenter', 'click'])"
    " one.dispatchEvent(new MouseEvent(name, {bubbles: true, cancelable: true})) })"
)
PATIENCE = 60
"""Seconds for one answer."""


@cache
def missing() -> str:
    """What this machine lacks for these tests; nothing where all is there."""
    lacks = [] if _chromium() else ["no chromium on the PATH"]
    lacks += [] if any(map(find_spec, AXE_PACKAGES)) else ["the extra `browser` is not installed"]
    return "; ".join(lacks)


def _chromium() -> str | None:
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return next(filter(None, found), None)


@cache
def axe() -> str:
    """The source of axe-core."""
    spec = next(filter(None, map(find_spec, AXE_PACKAGES)))
    assert spec.origin is not None
    return (Path(spec.origin).parent / "axe.min.js").read_text(encoding="utf-8")


class Browser:
    """One window; `open` a page, then ask."""

    def __init__(self, orders: int, answers: int, folder: Path) -> None:
        self._orders, self._answers, self._folder = os.fdopen(orders, "wb"), answers, folder
        self._read, self._number, self._session = b"", 0, ""
        self._loaded = False
        self.requests: list[str] = []
        """Addresses that the page asked for beside itself."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network"):
            self._call(f"{domain}.enable")
        self._call("Page.addScriptToEvaluateOnNewDocument", source=COUNTER)

    def open(
        self, page: str, width: int = 1280, scheme: str = "light", obeying: bool = True, suffix: str = "html"
    ) -> None:
        """
        Args:
            page: its text, by its suffix HTML or SVG. width: CSS pixels. scheme: the reader's, light or dark.
            obeying: whether what the page itself says about scripts (its policy) holds; without it an attack is
                stopped by nothing but being written as text.
        """
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self._call("Page.setBypassCSP", enabled=not obeying)
        file = self._folder / f"page.{suffix}"
        file.write_text(page, encoding="utf-8")
        self.requests.clear()
        self._loaded = False
        self._call("Page.navigate", url=file.as_uri())
        while not self._loaded:
            self._message()
        self.requests.remove(file.as_uri())

    def ask(self, expression: str) -> Any:
        """What JavaScript in the page gives; waits for promises."""
        found = self._call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def unfold(self) -> None:
        """Opens all that a reader can open."""
        self.ask("document.querySelectorAll('details').forEach(one => { one.open = true })")

    def overflow(self) -> int:
        """CSS pixels by which the page is wider than its window."""
        return int(self.ask("document.documentElement.scrollWidth - innerWidth"))

    def violations(self) -> list[str]:
        """What axe finds: the rule, the place, and why."""
        self.ask(f"{axe()}; 0")
        found = self.ask("axe.run({resultTypes: ['violations']}).then(found => found.violations)")
        return [f"{rule['id']} {node['target']}: {node['failureSummary']}" for rule in found for node in rule["nodes"]]

    def heard(self) -> list[tuple[str, str]]:
        """What a screen reader is given, in its order: the role and the name of all that has a name."""
        nodes = self._call("Accessibility.getFullAXTree")["nodes"]
        said = [
            (node["role"]["value"], node["name"]["value"].strip())
            for node in _in_reading_order(nodes)
            if not node["ignored"] and "name" in node
        ]
        return [(role, name) for role, name in said if name and role != "InlineTextBox"]

    def scripts_that_ran(self) -> int:
        """Attacks that ran as the page was read, and as everything on it was focused, pointed at and clicked."""
        self.unfold()
        self.ask(TOUCHED)
        return int(self.ask("new Promise(done => setTimeout(() => done(window.ran), 50))"))

    def picture(self) -> bytes:
        """The whole page as PNG."""
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        return base64.b64decode(self._call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"])

    def print(self) -> bytes:
        """As PDF."""
        return base64.b64decode(self._call("Page.printToPDF", printBackground=False)["data"])

    def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        self._number += 1
        order = {"id": self._number, "method": method, "params": arguments}
        if self._session:
            order["sessionId"] = self._session
        self._orders.write(json.dumps(order).encode() + b"\0")
        self._orders.flush()
        while (answer := self._message()).get("id") != self._number:
            pass
        assert "result" in answer, answer
        return dict(answer["result"])

    def _message(self) -> dict[str, Any]:
        """The next answer or event; events are noted."""
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._answers], [], [], PATIENCE)
            piece = os.read(self._answers, 1 << 20) if ready else b""
            assert piece, "chromium says nothing more"
            self._read += piece
        text, _, self._read = self._read.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if message.get("method") == "Page.loadEventFired":
            self._loaded = True
        elif message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        return message


def _in_reading_order(nodes: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    by_id = {node["nodeId"]: node for node in nodes}
    waiting = [nodes[0]["nodeId"]]
    while waiting:
        node = by_id[waiting.pop()]
        yield node
        waiting += reversed([child for child in node.get("childIds", []) if child in by_id])


@contextmanager
def started() -> Iterator[Browser]:
    """A chromium of its own, with nothing remembered, that ends with the block."""
    command = _chromium()
    assert command is not None
    orders, their_orders = os.pipe()
    their_answers, answers = os.pipe()
    # The protocol's ends are descriptors 3 and 4 of the browser.
    placed = f'exec 3<&{orders} 4>&{answers}; exec "$@"'
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            ["bash", "-c", placed, "bash", command, *FLAGS, f"--user-data-dir={folder}/profile"],
            pass_fds=(orders, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(orders)
        os.close(answers)
        try:
            yield Browser(their_orders, their_answers, Path(folder))
        finally:
            process.kill()
            process.wait()
            os.close(their_answers)
