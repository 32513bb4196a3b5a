"""What the parts of bench.py measure with: a host at rest, the memory of processes, a bare WebSocket."""

import base64
import json
import os
import re
import socket
import struct
import sys
import threading
import time
from pathlib import Path

from appliance import Appliance


def say(text: str):
    print(text, file=sys.stderr, flush=True)


def settle(limit: float = 3.0):
    """Waits until the host is nearly idle: what one side does after its answer must not cost the other. Goes on after
    `limit` seconds where something else keeps the host busy."""
    def cpu():
        fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return sum(fields), fields[3] + fields[4]

    deadline, (total, idle) = time.monotonic() + limit, cpu()
    while time.monotonic() < deadline:
        time.sleep(0.1)
        now_total, now_idle = cpu()
        if now_total > total and (now_idle - idle) / (now_total - total) > 0.9:
            return
        total, idle = now_total, now_idle


def private_mib(pid: int) -> float:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(r"Private_Dirty:\s+(\d+)", rollup)[1]) / 1024


def memory_available_mib() -> float:
    return int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) / 1024


class Socket:
    """A WebSocket of a server (RFC 6455), as much of one as is needed to measure: text frames, none of them in pieces."""

    def __init__(self, server: Appliance, path: str):
        host, port = server.url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall((f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {server.key}\r\n"
                             "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                             f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n\r\n").encode())
        self.file = self.socket.makefile("rb")
        if b" 101 " not in self.file.readline():
            raise RuntimeError("the server did not take the WebSocket")
        while self.file.readline().strip():
            pass

    def say(self, **frame):
        data = json.dumps(frame).encode()
        length = bytes([0x80 | len(data)]) if len(data) < 126 else bytes([0xFE]) + struct.pack(">H", len(data))
        self.socket.sendall(b"\x81" + length + bytes(4) + data)  # masked with zeroes

    def raw(self) -> bytes:
        """The next text."""
        while True:
            kind, length = self.file.read(2)
            length = {126: lambda: struct.unpack(">H", self.file.read(2))[0], 127: lambda: struct.unpack(">Q", self.file.read(8))[0]}.get(length, lambda: length)()
            data = self.file.read(length)
            if kind == 0x81:
                return data
            if kind == 0x89:  # a ping
                self.socket.sendall(b"\x8a" + bytes([0x80 | len(data)]) + bytes(4) + data)
            if kind == 0x88:
                raise RuntimeError("the server closed the WebSocket")

    def hear(self) -> dict:
        return json.loads(self.raw())

    def run(self, command: str, args=(), each=lambda frame: None) -> int:
        self.say(type="exec_start", id="e", command=command, args=list(args), timeout_secs=600)
        while (frame := self.hear())["type"] != "exec_exit":
            if frame["type"] == "error":
                raise RuntimeError(frame["message"])
            each(frame)
        return frame["exit_code"]

    def close(self):
        self.socket.close()


class Watched:
    """The highest resident memory of a process above what it had at the start, in MiB, looked at all the time meanwhile."""

    def __init__(self, server: Appliance):
        self.server, self.ended = server, threading.Event()

    def __enter__(self):
        self.before = self.most = self.server.rss_mib()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def _look(self):
        while not self.ended.wait(0.02):
            self.most = max(self.most, self.server.rss_mib())

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()

    @property
    def grown(self) -> float:
        return self.most - self.before
