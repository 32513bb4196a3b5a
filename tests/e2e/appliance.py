"""A real `nullspace server` under test or under measurement: started on port 0 in its own directory,
asked over plain HTTP, ended by signal. Used by the journeys here and by tests/perf/bench.py.

Nothing here knows the public client: what that one does is the journeys' business.
"""

import http.client
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from urllib.parse import urlencode, urlsplit

REPOSITORY = Path(__file__).resolve().parents[2]
ANSI = re.compile(r"\x1b\[[0-9;]*m")
LISTENING = re.compile(r"listening on (http://\S+?)[\s\"',.]*$", re.MULTILINE)
ERROR_LINE = re.compile(r"(?:^|\s|\"level\":\")ERROR(?:\s|\"|$)")
# Long enough for a first start on a loaded two-core machine under emulation, where a cold boot takes seconds.
PATIENCE = 240.0


def binary() -> Path:
    return Path(os.environ.get("NULLSPACE_BIN") or REPOSITORY / "bin/nullspace").resolve()


def cache() -> Path:
    return Path(os.environ.get("NULLSPACE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nullspace")


def until(what: str, probe, timeout: float = PATIENCE, interval: float = 0.05):
    """Asks `probe` until it answers something true, and returns that; fails with `what` at the deadline."""
    deadline = time.monotonic() + timeout
    while True:
        if answer := probe():
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not so after {timeout:.0f} s")
        time.sleep(interval)


class Answer:
    """An HTTP answer, read whole."""

    def __init__(self, status: int, headers, body: bytes):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body) if self.body else None

    @property
    def code(self) -> str | None:
        return self.json["code"] if self.status >= 400 else None

    def __repr__(self):
        return f"<{self.status} {self.body[:400]!r}>"


class Http:
    """One keep-alive connection to a server. Not for two threads at once."""

    def __init__(self, url: str, key: str | None, timeout: float = 120.0):
        at = urlsplit(url)
        self.connection = http.client.HTTPConnection(at.hostname, at.port, timeout=timeout)
        self.key = key

    def __call__(self, method: str, path: str, body=None, *, headers=None, key=..., query=None) -> Answer:
        key = self.key if key is ... else key
        send = {"Authorization": f"Bearer {key}"} if key is not None else {}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            send["Content-Type"] = "application/json"
        send |= headers or {}
        if query:
            path += "?" + urlencode(query)
        try:
            self.connection.request(method, path, body=body, headers=send)
        except (BrokenPipeError, ConnectionResetError):
            # The server answered before it had read all of a body that is too large for it.
            if self.connection.sock is None:
                raise
        response = self.connection.getresponse()
        answer = Answer(response.status, response.headers, response.read())
        if response.will_close:
            self.connection.close()
        return answer

    def close(self):
        self.connection.close()


def toml(tables: dict) -> str:
    lines = []
    for table, pairs in tables.items():
        lines.append(f"[{table}]")
        lines += [f"{name} = {json.dumps(value)}" for name, value in pairs.items()]
    return "\n".join(lines) + "\n"


class Appliance:
    """A server and its data directory. `start` may be called again after `stop` or `kill`: it is then the same server."""

    def __init__(self, directory: Path, data_dir: Path | None = None, config: dict | None = None, checkpoints: Path | None = None):
        self.directory = directory
        self.data_dir = data_dir or directory / "data"
        self.log = directory / "server.log"
        self.config = {table: dict(pairs) for table, pairs in (config or {}).items()}
        self.config.setdefault("ssh", {}).setdefault("listen", "127.0.0.1:0")  # several stand side by side
        self.config.setdefault("node", {}).setdefault("checkpoint_dir", str(checkpoints or cache() / "checkpoints"))
        self.process: subprocess.Popen | None = None
        self.url = ""
        self.expected_errors: list[re.Pattern] = []
        self._http = threading.local()
        self._starts = 0

    def start(self, wait: bool = True, env: dict[str, str] | None = None) -> "Appliance":
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "config.toml"
        config.write_text(toml(self.config))
        self._starts += 1
        begin = self.log.stat().st_size if self.log.exists() else 0
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [binary(), "server", "--data-dir", self.data_dir, "--listen", "127.0.0.1:0", "--config", config],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory, start_new_session=True,
                env={k: v for k, v in os.environ.items() if not k.startswith("NULLSPACE_") or k == "NULLSPACE_CACHE"} | (env or {}),
            )

        def listening():
            assert self.process.poll() is None, f"the server ended with {self.process.returncode}:\n{self.tail()}"
            return LISTENING.findall(self.text(begin))

        self.url = until(f"the server names its address in {self.log}", listening, 60)[-1]
        if wait:
            self.wait_healthy()
        return self

    def wait_healthy(self):
        def healthy():
            assert self.process.poll() is None, f"the server ended with {self.process.returncode}:\n{self.tail()}"
            return self.call("GET", "/healthz", key=None).status == 200

        until(f"{self.url}/healthz is 200", healthy)

    def text(self, begin: int = 0) -> str:
        with open(self.log, "rb") as f:
            f.seek(begin)
            return ANSI.sub("", f.read().decode(errors="replace"))

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.text().splitlines()[-lines:])

    def unexpected_errors(self) -> list[str]:
        return [line for line in self.text().splitlines()
                if ERROR_LINE.search(line) and not any(e.search(line) for e in self.expected_errors)]

    @property
    def key(self) -> str:
        return (self.data_dir / "admin.key").read_text().strip()

    def http(self, key=..., timeout: float = 120.0) -> Http:
        return Http(self.url, self.key if key is ... else key, timeout)

    def call(self, method: str, path: str, body=None, **more) -> Answer:
        """Over this thread's own connection, made again when the server has closed it."""
        mine = self._http.__dict__
        if mine.get("url") != (self.url, self._starts):
            mine.update(url=(self.url, self._starts), http=Http(self.url, None))
        more.setdefault("key", ...)
        if more["key"] is ...:
            more["key"] = self.key
        try:
            return mine["http"](method, path, body, **more)
        except (OSError, http.client.HTTPException):
            mine["http"].close()
            return mine["http"](method, path, body, **more)

    def create(self, **fields) -> str:
        """A sandbox of one vCPU and 256 MiB unless told otherwise; its ID."""
        answer = self.call("POST", "/v1/sandboxes", fields)
        assert answer.status == 201, answer
        return answer.json["id"]

    def exec(self, sandbox: str, command: str, *args: str, **more) -> dict:
        """A command to its end; without arguments a line for the shell. What the API answered."""
        body = {"command": command, "args": list(args)} if args else {"command": command, "shell": True}
        answer = self.call("POST", f"/v1/sandboxes/{sandbox}/exec", body | more)
        assert answer.status == 200, answer
        return answer.json

    def out(self, sandbox: str, command: str, *args: str, **more) -> str:
        """What a command that must succeed wrote."""
        result = self.exec(sandbox, command, *args, **more)
        assert result["exit_code"] == 0, result
        return result["stdout"].strip()

    def background(self, sandbox: str, command: str, *args: str) -> int:
        """The PID of a command that goes on; without arguments a line for the shell."""
        body = {"command": command, "args": list(args)} if args else {"command": command, "shell": True}
        return self.done(200, "POST", f"/v1/sandboxes/{sandbox}/exec", body | {"background": True})["pid"]

    def destroy(self, sandbox: str):
        answer = self.call("DELETE", f"/v1/sandboxes/{sandbox}")
        assert answer.status in (200, 204, 404), answer

    def status(self, sandbox: str) -> str:
        """As shown, or the code of the refusal."""
        answer = self.call("GET", f"/v1/sandboxes/{sandbox}")
        return answer.json["status"] if answer.status == 200 else answer.code

    def done(self, status: int, method: str, path: str, body=None, **more):
        """What a call answered that must answer with this status."""
        answer = self.call(method, path, body, **more)
        assert answer.status == status, answer
        return answer.json

    def hibernate(self, sandbox: str) -> str:
        """The ID of the snapshot that it sleeps in."""
        return self.done(200, "POST", f"/v1/sandboxes/{sandbox}/hibernate")["id"]

    def resume(self, sandbox: str) -> dict:
        return self.done(200, "POST", f"/v1/sandboxes/{sandbox}/resume")

    def fork(self, sandbox: str, count: int = 1, **more) -> list[str]:
        """The IDs of its children."""
        return [child["id"] for child in self.done(201, "POST", f"/v1/sandboxes/{sandbox}/fork", {"count": count}, **more)["items"]]

    def snapshot(self, sandbox: str, **more) -> str:
        return self.done(201, "POST", f"/v1/sandboxes/{sandbox}/snapshots", **more)["id"]

    def snapshots(self, **query) -> list[dict]:
        return self.done(200, "GET", "/v1/snapshots", query=query)

    def events(self, sandbox: str | None = None, **query) -> list[dict]:
        """All events that match, oldest first."""
        path, found = f"/v1/sandboxes/{sandbox}/lifecycle" if sandbox else "/v1/lifecycle/events", []
        while True:
            page = self.done(200, "GET", path, query={"order": "asc", "limit": 500, "offset": len(found)} | query)
            found += page["events"]
            if not page["has_more"]:
                return found

    def told(self, sandbox: str, **query) -> list[str]:
        """The same in short: `operation/status`."""
        return [f"{e['operation']}/{e['status']}" for e in self.events(sandbox, **query)]

    def listed(self, **query) -> list[dict]:
        """All pages."""
        items, token = [], None
        while True:
            answer = self.call("GET", "/v1/sandboxes", query={"limit": 100} | query | ({"next_token": token} if token else {}))
            assert answer.status == 200, answer
            items += answer.json["items"]
            token = answer.json.get("next_token") if answer.json["has_next"] else None
            if not token:
                return items

    def destroy_all(self):
        for sandbox in self.listed():
            self.destroy(sandbox["id"])

    def delete_snapshots(self):
        for snapshot in self.snapshots():
            self.done(204, "DELETE", f"/v1/snapshots/{snapshot['id']}")

    def monitors(self) -> dict[str, int]:
        """The live QEMU process of each sandbox, as the node recorded it."""
        found = {}
        for record in self.data_dir.glob("node/machines/*/machine.json"):
            try:
                pid = json.loads(record.read_text())["pid"]
            except (OSError, ValueError, KeyError):
                continue  # written or removed at this moment
            if pid and Path(f"/proc/{pid}").exists():
                found[record.parent.name] = pid
        return found

    def rss_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def keys(self, *words: str) -> str:
        """`nullspace key …` on this server's data directory; what it printed."""
        done = subprocess.run([binary(), "key", *words, "--data-dir", self.data_dir], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done
        return done.stdout

    def stop(self, timeout: float = 30.0) -> int:
        """SIGTERM; the exit status."""
        if self.process is None or self.process.poll() is not None:
            return self.process.returncode if self.process else 0
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the server did not stop within {timeout} s of SIGTERM:\n{self.tail()}") from None

    def kill(self):
        """kill -9."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def end(self):
        """Destroys all sandboxes and stops: what a test does that leaves nothing."""
        if self.process is None:
            return
        if self.process.poll() is not None:
            self.start()
        self.destroy_all()
        status = self.stop()
        assert status == 0, f"the server ended with {status}:\n{self.tail()}"
