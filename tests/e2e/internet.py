"""An internet in a network namespace of its own: a resolver, and hosts with names, certificates and services.
What a sandbox may not reach must not arrive here, so everything that arrives is written down.

Addresses are those set aside for documentation (RFC 5737): public for a sandbox, nobody's on a real network.

Run as a program, `internet.py DIRECTORY`, it is that internet.
"""

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NAMESPACE, NEAR, FAR = "ns-e2e-internet", "nse2e0", "nse2e1"
HOST, RESOLVER = "198.51.100.1", "198.51.100.53"
GOOD, BAD, SHARED, LONELY = "198.51.100.10", "198.51.100.20", "198.51.100.30", "198.51.100.40"
ZONE = {
    "good.test": GOOD, "www.good.test": GOOD, "bad.test": BAD, "one.shared.test": SHARED, "two.shared.test": SHARED,
    "api.test": GOOD, "wrong.test": BAD, "alias.test": "www.good.test",
}
HTTP, HTTPS, ECHO, GREETING, DATAGRAM = 80, 443, 7, 2222, 9000


# ---- the program ----------------------------------------------------------------------------------


class Book:
    """What arrived, one line of JSON each."""

    def __init__(self, path: Path):
        self.file, self.lock = open(path, "a", buffering=1), threading.Lock()

    def note(self, **what):
        with self.lock:
            self.file.write(json.dumps(what) + "\n")


def name_of(query: bytes) -> tuple[str, int, int]:
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1:at + 1 + length].decode("latin-1"))
        at += length + 1
    return ".".join(labels).lower(), int.from_bytes(query[at + 1:at + 3], "big"), at + 5


def encoded(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def resolved(query: bytes, book: Book) -> bytes:
    name, kind, end = name_of(query)
    book.note(service="dns", name=name, type=kind)
    answers, found = [], ZONE.get(name)
    if found and not found[0].isdigit():  # an alias
        answers.append(b"\xc0\x0c" + (5).to_bytes(2, "big") + b"\0\1\0\0\0\x3c" + len(encoded(found)).to_bytes(2, "big") + encoded(found))
        name, found = found, ZONE[found]
    if found and kind == 1:
        owner = b"\xc0\x0c" if not answers else encoded(name)
        answers.append(owner + b"\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton(found))
    code = 0 if found else 3
    return query[:2] + bytes([0x81, 0x80 | code]) + b"\0\1" + len(answers).to_bytes(2, "big") + b"\0\0\0\0" + query[12:end] + b"".join(answers)


def serve_dns(book: Book):
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((RESOLVER, 53))
    tcp = socket.create_server((RESOLVER, 53))

    def over_tcp():
        while True:
            link, _ = tcp.accept()
            with link:
                length = int.from_bytes(link.recv(2), "big")
                answer = resolved(link.recv(length), book)
                link.sendall(len(answer).to_bytes(2, "big") + answer)

    threading.Thread(target=over_tcp, daemon=True).start()
    while True:
        query, peer = udp.recvfrom(4096)
        udp.sendto(resolved(query, book), peer)


def handler(book: Book, secure: bool):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            seen = {
                "service": "https" if secure else "http", "address": self.server.server_address[0], "path": self.path, "method": self.command,
                "host": self.headers.get("Host"), "headers": {k.lower(): v for k, v in self.headers.items()}, "body": len(body),
                "server_name": getattr(self.connection, "shown_name", None),
            }
            book.note(**seen)
            text = json.dumps({k: v for k, v in seen.items() if k != "headers"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = answer

        def log_message(self, *_):
            pass

    return Handler


def serve_http(address: str, port: int, book: Book, certificate: tuple[str, str] | None):
    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def finish_request(self, request, client):
            if certificate:
                book.note(service="tls", address=address, port=port)
                context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
                context.load_cert_chain(*certificate)
                shown = []
                context.sni_callback = lambda _, name, __: shown.append(name)
                try:
                    request = context.wrap_socket(request, server_side=True)
                except OSError:
                    return
                request.shown_name = shown[-1] if shown else None
            super().finish_request(request, client)

    Server((address, port), handler(book, bool(certificate))).serve_forever()


def serve_bytes(address: str, port: int, book: Book, greeting: bytes):
    listener = socket.create_server((address, port), backlog=64)

    def one(link: socket.socket):
        with link:
            link.sendall(greeting)
            while data := link.recv(65536):
                link.sendall(data)

    while True:
        link, _ = listener.accept()
        book.note(service="tcp", address=address, port=port)
        threading.Thread(target=lambda link=link: _quietly(one, link), daemon=True).start()


def _quietly(work, link):
    try:
        work(link)
    except OSError:
        pass  # the other end is gone


def serve_datagrams(address: str, book: Book):
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((address, DATAGRAM))
    while True:
        data, peer = udp.recvfrom(4096)
        book.note(service="udp", address=address, data=data.decode("latin-1"))
        udp.sendto(data, peer)


def main(directory: Path):
    book = Book(directory / "arrived")
    tasks = [lambda: serve_dns(book)]
    for address in (GOOD, BAD, SHARED, LONELY):
        certificate = (str(directory / f"{'wrong' if address == BAD else 'hosts'}.pem"), str(directory / "hosts.key"))
        tasks += [
            lambda a=address: serve_http(a, HTTP, book, None),
            lambda a=address, c=certificate: serve_http(a, HTTPS, book, c),
            lambda a=address: serve_bytes(a, ECHO, book, b""),
            lambda a=address: serve_bytes(a, GREETING, book, b"hello\n"),
            lambda a=address: serve_datagrams(a, book),
        ]
    for task in tasks:
        threading.Thread(target=task, daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()


# ---- the fixture ----------------------------------------------------------------------------------


def run(*words: str):
    subprocess.run(words, check=True, timeout=60, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


class Internet:
    """Made anew for a test run, and removed with all it holds."""

    def __init__(self, directory: Path):
        self.directory = directory
        directory.mkdir(parents=True)
        self.certify()
        subprocess.run(["ip", "netns", "del", NAMESPACE], stderr=subprocess.DEVNULL)
        run("ip", "netns", "add", NAMESPACE)
        run("ip", "link", "add", NEAR, "type", "veth", "peer", "name", FAR, "netns", NAMESPACE)
        run("ip", "addr", "add", f"{HOST}/24", "dev", NEAR)
        run("ip", "link", "set", NEAR, "up")
        run("ip", "-n", NAMESPACE, "link", "set", "lo", "up")
        run("ip", "-n", NAMESPACE, "link", "set", FAR, "up")
        for address in (GOOD, BAD, SHARED, LONELY, RESOLVER):
            run("ip", "-n", NAMESPACE, "addr", "add", f"{address}/24", "dev", FAR)
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", NAMESPACE, sys.executable, __file__, str(directory)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def certify(self):
        """An authority that the node is told of, a certificate by it for all names, and one for none of them."""
        at = self.directory
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30", "-subj", "/CN=e2e authority",
            "-keyout", str(at / "ca.key"), "-out", str(at / "ca.pem"))
        run("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=hosts",
            "-keyout", str(at / "hosts.key"), "-out", str(at / "hosts.csr"))
        names = {"hosts": [name for name in ZONE if name != "wrong.test"], "wrong": ["elsewhere.test"]}
        for name, covered in names.items():
            (at / "names").write_text("subjectAltName=" + ",".join(f"DNS:{n}" for n in covered) + "\nbasicConstraints=CA:FALSE\n")
            run("openssl", "x509", "-req", "-in", str(at / "hosts.csr"), "-CA", str(at / "ca.pem"), "-CAkey", str(at / "ca.key"),
                "-CAcreateserial", "-days", "30", "-extfile", str(at / "names"), "-out", str(at / f"{name}.pem"))

    @property
    def authority(self) -> Path:
        return self.directory / "ca.pem"

    def arrived(self, since: int = 0, **like) -> list[dict]:
        """What arrived, and is like this."""
        lines = (self.directory / "arrived").read_text().splitlines()[since:]
        found = [json.loads(line) for line in lines if line.endswith("}")]
        return [one for one in found if all(one.get(k) == v for k, v in like.items())]

    def mark(self) -> int:
        return len((self.directory / "arrived").read_text().splitlines())

    def enter(self, *words: str, **more) -> subprocess.Popen:
        """Runs a program in there."""
        return subprocess.Popen(["ip", "netns", "exec", NAMESPACE, *words], **more)

    def config(self) -> dict:
        """What makes a server's sandboxes live in this internet."""
        return {"network": {"resolvers": [RESOLVER], "authorities": [str(self.authority)]}}

    def close(self):
        self.process.terminate()
        self.process.wait()
        run("ip", "netns", "del", NAMESPACE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
