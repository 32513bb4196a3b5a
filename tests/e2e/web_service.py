"""A service for the inside of a sandbox: HTTP/1.1, server-sent events, WebSockets and bad manners, by Python's own library.

    web_service.py PORT

What it answers:

    /headers      the request's line and headers, as JSON
    /echo         the body as it came, in pieces, while it comes
    /events       three server-sent events, each when the one before was asked for by a file
    /bytes/N      N bytes
    /slow         a head, and then nothing
    /garbage      no HTTP
    /early        half of the body that it promised
    /never        nothing
    /ws           a WebSocket that echoes
    /page         a page that opens the WebSocket beside it and writes into its title what comes back
"""

import base64
import hashlib
import json
import os
import socketserver
import sys
import time
from http.server import BaseHTTPRequestHandler

PAGE = """<!doctype html><title>waiting</title><h1>page</h1><script>
const url = new URLSearchParams(location.search).get("socket") || location.origin.replace(/^http/, "ws") + "/ws";
const socket = new WebSocket(url);
socket.onopen = () => socket.send("from the page");
socket.onmessage = (message) => { document.title = "echo: " + message.data; };
socket.onerror = () => { document.title = "refused"; };
</script>"""


class Service(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def whole(self, body: bytes, kind: str = "application/octet-stream", **headers):
        self.send_response(200)
        for name, value in ({"Content-Type": kind, "Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def chunk(self, data: bytes):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def do_GET(self):
        path = self.path.split("?")[0]
        if path == "/ws":
            self.websocket()
        elif path == "/page":
            self.whole(PAGE.encode(), "text/html")
        elif path.startswith("/bytes/"):
            self.whole(b"x" * int(path.rsplit("/", 1)[1]))
        elif path == "/events":
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for n in range(3):
                while n and not os.path.exists(f"/tmp/event-{n}"):
                    time.sleep(0.01)
                self.chunk(f"data: {n}\n\n".encode())
            self.chunk(b"")
        elif path == "/slow":
            self.send_response(200)
            self.send_header("Content-Length", "10")
            self.end_headers()
            time.sleep(3600)
        elif path == "/garbage":
            self.wfile.write(b"\x00\x01 this is no HTTP\r\n\r\n")
            self.close_connection = True
        elif path == "/early":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"half")
            self.close_connection = True
        elif path == "/never":
            time.sleep(3600)
        else:
            seen = {"line": self.requestline, "headers": [[k, v] for k, v in self.headers.items()], "from": self.client_address[0]}
            self.whole(json.dumps(seen).encode(), "application/json", **{"X-Service": "mine"})

    do_HEAD = do_DELETE = do_GET

    def do_POST(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in self.body():
            self.chunk(piece)
        self.chunk(b"")

    do_PUT = do_POST

    def body(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            left = int(self.headers.get("Content-Length") or 0)
            while left and (piece := self.rfile.read1(min(left, 65536))):
                left -= len(piece)
                yield piece

    def websocket(self):
        """RFC 6455, frames shorter than 64 KiB."""
        accept = hashlib.sha1(self.headers["Sec-WebSocket-Key"].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(accept).decode())
        self.end_headers()
        self.close_connection = True
        while len(head := self.rfile.read(2)) == 2:
            kind, length = head[0] & 15, head[1] & 127
            if length == 126:
                length = int.from_bytes(self.rfile.read(2), "big")
            mask, data = self.rfile.read(4), self.rfile.read(length)
            data = bytes(byte ^ mask[n % 4] for n, byte in enumerate(data))
            size = bytes([length]) if length < 126 else b"\x7e" + length.to_bytes(2, "big")
            self.wfile.write(bytes([0x80 | (10 if kind == 9 else kind)]) + size + data)
            if kind == 8:
                return


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    request_queue_size = 512

    def handle_error(self, *_):
        pass


if __name__ == "__main__":
    Server(("0.0.0.0", int(sys.argv[1])), Service).serve_forever()
