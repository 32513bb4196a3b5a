"""A real browser, driven by its own protocol (Chrome DevTools): pages opened, what is on them read."""

import json
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path

from websockets.sync.client import connect


def program() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    raise AssertionError("no Chromium here: scripts/setup test installs it")


class Browser:
    """Headless, with a profile of its own."""

    def __init__(self, profile: Path):
        self.process = subprocess.Popen(
            [program(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
             "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"], stderr=subprocess.PIPE, text=True)
        port = None
        for line in self.process.stderr:
            if found := re.search(r"listening on ws://[^/]*:(\d+)/", line):
                port = found[1]
                break
        assert port, "the browser did not start"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=30) as pages:
            page = next(page for page in json.load(pages) if page["type"] == "page")
        self.socket = connect(page["webSocketDebuggerUrl"], max_size=None)
        self.calls = 0

    def call(self, method: str, **params) -> dict:
        self.calls += 1
        self.socket.send(json.dumps({"id": self.calls, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv(timeout=60))
            if message.get("id") == self.calls:
                assert "error" not in message, message
                return message["result"]

    def open(self, url: str):
        assert "errorText" not in self.call("Page.navigate", url=url)

    def value(self, expression: str):
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def cookies(self) -> list[dict]:
        return self.call("Network.getAllCookies")["cookies"]

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait()
        self.process.stderr.close()
