"""Debian's Chromium, headless, driven by the DevTools protocol over two pipes; nothing to install beside the browser itself."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
needed = pytest.mark.skipif(BROWSER is None, reason="Chromium is not on this machine: apt-get install chromium")


class Page:
    """One tab. `problems`: exceptions and errors of scripts; `requests`: the addresses that were asked for; `failed`: those that did
    not answer."""

    def __init__(self, process, read, write):
        self.process, self.read, self.write = process, read, write
        self.count, self.buffer, self.session = 0, b"", None
        self.problems, self.requests, self.failed, self.events = [], [], [], []

    def send(self, method, wait=30.0, **params):
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        wanted, until = self.count, time.monotonic() + wait
        while time.monotonic() < until:
            for answer in self.receive(until):
                if answer.get("id") == wanted:
                    assert "error" not in answer, f"{method}: {answer['error']}"
                    return answer["result"]
        raise TimeoutError(f"Chromium did not answer {method} within {wait} s")

    def receive(self, until):
        """The messages that have come; waits for one at least."""
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.read], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return
            part = os.read(self.read, 2**20)
            assert part, f"Chromium ended ({self.process.poll()})"
            self.buffer += part
        *whole, self.buffer = self.buffer.split(b"\0")
        for text in whole:
            message = json.loads(text)
            self.note(message.get("method"), message.get("params", {}))
            yield message

    def note(self, method, params):
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.problems.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Network.loadingFailed" and not params.get("canceled"):
            self.failed.append(params["errorText"])
        elif method is not None:
            self.events.append(method)

    def open(self, address, width=1280, height=900, dark=False):
        self.size(width, height)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=scheme)
        self.send("Page.navigate", url=str(address))
        self.until("document.readyState === 'complete'")
        return self

    def size(self, width, height=900):
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def value(self, script):
        """Of an expression, or of a promise."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, script, seconds=30.0):
        """Waits for an expression to become true; returns its value."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := self.value(script):
                return value
            time.sleep(0.05)
        raise TimeoutError(f"not within {seconds} s: {script}; {self.problems}")

    def pointer(self, x, y, kind="mouseMoved"):
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y)

    def upload(self, selector, path):
        """Chooses a file for the first field that fits."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def screenshot(self, path, whole=True):
        if whole:
            height = self.value("Math.ceil(document.documentElement.scrollHeight)")
            self.size(self.value("innerWidth"), min(height, 16000))
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=False)["data"]
        Path(path).write_bytes(base64.b64decode(data))


@contextlib.contextmanager
def browser():
    """A page in a browser of its own, which ends with the block."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    for fd in (theirs_in, theirs_out):
        os.set_inheritable(fd, True)

    def wire():
        a, b = os.dup(theirs_in), os.dup(theirs_out)  # neither may be 3 or 4 when these are taken
        high_a, high_b = os.dup2(a, 60), os.dup2(b, 61)
        os.dup2(high_a, 3)
        os.dup2(high_b, 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [BROWSER, *FLAGS, f"--user-data-dir={profile}", "about:blank"], preexec_fn=wire, close_fds=False,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "HOME": profile},
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            page = Page(process, ours_in, ours_out)
            target = next(t for t in page.send("Target.getTargets")["targetInfos"] if t["type"] == "page")
            page.session = page.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Network"):
                page.send(f"{domain}.enable")
            yield page
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(ours_in)
            os.close(ours_out)
