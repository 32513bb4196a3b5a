"""An endpoint for webhooks, on this host, which may behave as badly as it likes."""

import http.server
import json
import threading


class Receiver:
    """An HTTP server on this host that keeps what it is sent. `answer(request, n)` says what it does with its
    n-th request; without one it takes everything."""

    def __init__(self, answer=None):
        receiver, self.requests, self.lock = self, [], threading.Lock()
        self.answer, self.ended = answer, threading.Event()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                with receiver.lock:
                    receiver.requests.append((self.path, self.headers, body))
                    n = len(receiver.requests)
                if receiver.answer is None or not receiver.answer(self, n):
                    self.plain(204)

            def do_GET(self):
                with receiver.lock:
                    receiver.requests.append((self.path, self.headers, b""))
                self.plain(204)

            def plain(self, status, **headers):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if status != 204:
                    self.send_header("Content-Length", "0")
                self.end_headers()
                return True

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def events(self) -> list[dict]:
        with self.lock:
            return [json.loads(body)["event"] for _, _, body in self.requests]

    def close(self):
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()
