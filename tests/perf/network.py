"""The part `network` of bench.py: what the gateway adds to a request, how much it carries and holds, what a policy
adds to a create, and what SSH costs.

The floor is the same load, by the same program, straight to the guest's address from inside the sandbox's network
namespace; for SSH it is a plain OpenSSH server in the same guest, reached in the same way. The service is a small
program of our own, made here and written into the guest: an interpreter under emulation would be what is measured.
"""

import os
import re
import resource
import selectors
import socket
import subprocess
import time
from pathlib import Path
from urllib.parse import urlsplit

from appliance import until
from measure import say, settle

GUEST = "10.200.0.2"  # the same in every namespace
PORT = 8000
SSH_PORT = 2222
CROWD = 200
SOCKETS = 2000
ECHO_SECONDS = 10
RULES = 200

# Answers /large with a megabyte and everything else with two bytes, keeps connections open, and echoes the frames of
# WebSockets, which come masked and in one piece. The key of every handshake is the one of RFC 6455, 1.3.
SERVICE = r"""
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

struct line { int fd, framed; size_t held; char in[4096]; const char *out; size_t left; };

static char large[1000000 + 128];
static size_t large_size;
static const char small[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
static const char upgrade[] = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/* Sends what is left; 0 when all is sent, 1 when the rest must wait, -1 when the other end is gone. */
static int flush(struct line *l) {
    while (l->left) {
        ssize_t n = send(l->fd, l->out, l->left, MSG_NOSIGNAL);
        if (n < 0) return errno == EAGAIN ? 1 : -1;
        l->out += n, l->left -= n;
    }
    return 0;
}

static void drop(struct line *l, size_t n) {
    l->held -= n;
    memmove(l->in, l->in + n, l->held);
}

/* Answers what is held; -1 when the connection has to end. */
static int answer(struct line *l) {
    for (;;) {
        int state = flush(l);
        if (state) return state < 0 ? -1 : 0;
        if (l->framed) {
            unsigned char *f = (unsigned char *)l->in;
            if (l->held < 2) return 0;
            size_t n = f[1] & 127;
            if (n > 125 || !(f[1] & 128)) return -1;
            if (l->held < 6 + n) return 0;
            for (size_t i = 0; i < n; i++) f[6 + i] ^= f[2 + i % 4];
            f[4] = f[0], f[5] = n;
            if (send(l->fd, f + 4, 2 + n, MSG_NOSIGNAL) != (ssize_t)(2 + n)) return -1;
            drop(l, 6 + n);
            continue;
        }
        char *end = memmem(l->in, l->held, "\r\n\r\n", 4);
        if (!end) return l->held == sizeof l->in ? -1 : 0;
        if (memmem(l->in, end - l->in, "Sec-WebSocket-Key", 17) || memmem(l->in, end - l->in, "sec-websocket-key", 17))
            l->framed = 1, l->out = upgrade, l->left = sizeof upgrade - 1;
        else if (l->held > 10 && !memcmp(l->in, "GET /large", 10))
            l->out = large, l->left = large_size;
        else
            l->out = small, l->left = sizeof small - 1;
        drop(l, end + 4 - l->in);
    }
}

int main(int count, char **words) {
    struct rlimit files = { 65536, 65536 };
    setrlimit(RLIMIT_NOFILE, &files);
    large_size = sprintf(large, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n");
    memset(large + large_size, 'x', 1000000);
    large_size += 1000000;
    int one = 1, server = socket(AF_INET, SOCK_STREAM, 0), poll = epoll_create1(0);
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(count > 1 ? atoi(words[1]) : 8000) };
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(server, (void *)&at, sizeof at) || listen(server, 4096)) return perror("listen"), 1;
    struct epoll_event e = { .events = EPOLLIN, .data.ptr = NULL }, got[256];
    epoll_ctl(poll, EPOLL_CTL_ADD, server, &e);
    for (;;) {
        int n = epoll_wait(poll, got, 256, -1);
        for (int i = 0; i < n; i++) {
            struct line *l = got[i].data.ptr;
            if (!l) {
                int fd = accept4(server, NULL, NULL, SOCK_NONBLOCK);
                if (fd < 0) continue;
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                l = calloc(1, sizeof *l);
                l->fd = fd;
                e.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, e.data.ptr = l;
                epoll_ctl(poll, EPOLL_CTL_ADD, fd, &e);
                continue;
            }
            int over = 0;
            for (;;) {
                ssize_t r = recv(l->fd, l->in + l->held, sizeof l->in - l->held, 0);
                if (r > 0) l->held += r;
                else if (!r || errno != EAGAIN) over = l->held < sizeof l->in;
                if (over || answer(l) < 0) { over = 1; break; }
                if (r <= 0) break;
            }
            if (over) close(l->fd), free(l);
        }
    }
}
"""


def measure(ours, directory: Path, size: dict, args):
    say("the gateway: the same load through it, and straight to the guest, by turns")
    server = ours.server
    sandbox = server.create(**size, timeout_ms=3_600_000)
    start_service(server, sandbox, directory)
    inside = Inside(server, sandbox)
    url = server.done(200, "POST", f"/v1/sandboxes/{sandbox}/host", {"port": PORT})["url"]
    seconds = 2 if args.quick else 5
    for _ in range(args.bursts):
        for prefix, load in (("floor_", Load(f"http://{GUEST}:{PORT}", inside)), ("gateway_", Load(url))):
            settle()
            ours.note(f"{prefix}p50_ms", load.run("/", 1, seconds)["50%"])
            settle()
            ours.note(f"{prefix}{CROWD}_p99_ms", load.run("/", CROWD, seconds)["99%"])
            settle()
            ours.note(f"{prefix}large_mb_s", load.run("/large", 4, seconds)["mb_s"])
    websockets(ours, url)
    policies(ours, size, args.rounds)
    ssh(ours, sandbox, inside, directory, args.rounds)
    server.destroy(sandbox)


def start_service(server, sandbox: str, directory: Path):
    source, program = directory / "service.c", directory / "service"
    source.write_text(SERVICE)
    subprocess.run(["cc", "-O2", "-static", "-D_GNU_SOURCE", "-o", program, source], check=True)
    answer = server.call("PUT", f"/v1/sandboxes/{sandbox}/file?path=/var/tmp/service", program.read_bytes())
    assert answer.status == 204, answer
    server.out(sandbox, "chmod +x /var/tmp/service")
    server.background(sandbox, "/var/tmp/service", str(PORT))
    ready = server.done(200, "POST", f"/v1/sandboxes/{sandbox}/ports/{PORT}/readiness", {"kind": "http", "path": "/"})
    assert ready["ready"], ready


class Inside:
    """The network namespace of a sandbox."""

    def __init__(self, server, sandbox: str):
        self.words = ["nsenter", f"--net=/proc/{server.monitors()[sandbox]}/ns/net"]


class Load:
    """wrk against one address, from the host or from inside a namespace."""

    def __init__(self, url: str, inside: Inside | None = None):
        self.url, self.words = url.rstrip("/"), inside.words if inside else []

    def run(self, path: str, connections: int, seconds: int) -> dict[str, float]:
        """Milliseconds by percentile, and MB/s. Fails if a single answer was missing or not 200."""
        words = ["wrk", "--latency", "--timeout", "30s", f"-t{min(connections, 2)}", f"-c{connections}", f"-d{seconds}s", self.url + path]
        text = subprocess.run(self.words + words, capture_output=True, text=True, check=True, timeout=seconds + 120).stdout
        if "Socket errors" in text or "Non-2xx" in text:
            raise RuntimeError(f"{' '.join(words)}:\n{text}")
        scale = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 60e3}
        found = {name: float(value) * scale[unit] for name, value, unit in re.findall(r"^\s+(\d+%)\s+([\d.]+)(us|ms|s|m)\s*$", text, re.MULTILINE)}
        value, unit = re.search(r"Transfer/sec:\s+([\d.]+)([KMG]?)B", text).groups()
        found["mb_s"] = float(value) * {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[unit] / 1e6
        return found


# ---- WebSockets ----------------------------------------------------------------------------------


def websockets(ours, url: str):
    """Many open at once, an echo on each every second; the server's memory for each, and the echoes that did not come."""
    say(f"{SOCKETS} WebSockets through the gateway, an echo on each every second")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < SOCKETS + 100:
        say(f"SKIP: {SOCKETS} WebSockets need more open files than the {hard} allowed here")
        return
    settle()
    before, at = ours.server.rss_mib(), urlsplit(url)
    lines = []
    try:
        for _ in range(SOCKETS):
            lines.append(open_websocket(at))
        settle()
        lost, most = 0, ours.server.rss_mib()
        for second in range(ECHO_SECONDS):
            lost += echo(lines, b"%08d" % second)
            most = max(most, ours.server.rss_mib())
        ours.note("websocket_memory_kb", (most - before) * 1024 / SOCKETS)
        ours.note("websocket_echoes_lost", lost)
    finally:
        for line in lines:
            line.close()


def open_websocket(at) -> socket.socket:
    line = socket.create_connection((at.hostname, at.port), timeout=60)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    line.sendall((f"GET /echo HTTP/1.1\r\nHost: {at.netloc}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                  "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n").encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        if not (more := line.recv(1)):
            raise RuntimeError(f"the gateway closed a WebSocket after {head}")
        head += more
    if b" 101 " not in head.split(b"\r\n")[0]:
        raise RuntimeError(f"the gateway did not take a WebSocket: {head}")
    return line


def echo(lines: list[socket.socket], text: bytes) -> int:
    """Says the text on each line, spread over a second, and hears it again; how many did not come within ten more."""
    frame = bytes([0x81, 0x80 | len(text)]) + bytes(4) + text  # masked with zeroes
    wanted, heard, done = bytes([0x81, len(text)]) + text, {line: b"" for line in lines}, 0
    begin, said = time.monotonic(), 0
    with selectors.DefaultSelector() as ready:
        for line in lines:
            ready.register(line, selectors.EVENT_READ)
        while done < len(lines) and (now := time.monotonic() - begin) < 11:
            due = min(len(lines), int(now * len(lines)) + 1)
            for line in lines[said:due]:
                line.sendall(frame)
            said = due
            for key, _ in ready.select(timeout=0.005 if said < len(lines) else 1):
                line = key.fileobj
                heard[line] += line.recv(4096)
                if heard[line] == wanted:
                    done += 1
                elif len(heard[line]) >= len(wanted) or not heard[line]:
                    ready.unregister(line)  # something else, or the end
    return len(lines) - done


# ---- policies ------------------------------------------------------------------------------------


def policies(ours, size: dict, rounds: int):
    """Creates with many rules and without any, by turns."""
    say(f"creates with {RULES} rules and with none: {rounds} rounds by turns")
    rules = {"allow_out": [f"198.51.100.{n}/32" for n in range(RULES // 2)],
             "deny_out": [f"192.0.{n}.0/24" for n in range(100, 100 + RULES // 4)],
             "deny_domains": [f"*.host{n}.example" for n in range(RULES // 4)]}
    http = ours.server.http(timeout=600)
    for _ in range(rounds):
        for name, fields in (("create_without_rules_ms", {}), (f"create_with_{RULES}_rules_ms", {"network": rules})):
            settle()
            t = time.perf_counter()
            made = http("POST", "/v1/sandboxes", size | fields)
            ours.note(name, (time.perf_counter() - t) * 1e3)
            if made.status != 201:
                raise RuntimeError(f"create: {made}")
            ours.server.destroy(made.json["id"])
    http.close()


# ---- SSH -----------------------------------------------------------------------------------------


def ssh(ours, sandbox: str, inside: Inside, directory: Path, rounds: int):
    """`true` by SSH through the relay, `true` by exec, and the handshake to a plain OpenSSH server in the guest."""
    server, key = ours.server, directory / "ssh_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    public = key.with_suffix(".pub").read_text().strip()
    answer = server.call("POST", f"/v1/sandboxes/{sandbox}/ssh-access", {"public_key": public, "expires_in_minutes": 60})
    if answer.status == 503:
        say(f"SKIP: SSH: {answer}")
        return
    assert answer.status == 200, answer
    access = answer.json
    Path(f"{key}-cert.pub").write_text(access["certificate"] + "\n")
    plain_server(server, sandbox, public)
    say(f"SSH: {rounds} rounds by turns")
    options = ["-F", "none", "-i", str(key), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
               "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none"]
    relay = ["ssh", *options, "-p", str(access["port"]), f"{access['user']}@{access['host']}", "true"]
    for n in range(rounds):
        plain = [*inside.words, "ssh", *options, "-p", str(SSH_PORT), "-o", "ControlMaster=yes", "-o", f"ControlPath={directory}/c{n}", f"root@{GUEST}"]
        settle()
        ours.note("ssh_true_ms", timed(relay))
        settle()
        t = time.perf_counter()
        ran = server.call("POST", f"/v1/sandboxes/{sandbox}/exec", {"command": "true"})
        ours.note("exec_true_ms", (time.perf_counter() - t) * 1e3)
        assert ran.status == 200 and ran.json["exit_code"] == 0, ran
        settle()
        ours.note("ssh_plain_handshake_ms", handshake(plain, directory / f"c{n}"))


def handshake(words: list[str], control: Path) -> float:
    """Until a client that runs nothing has been let in: it then makes its control socket."""
    t = time.perf_counter()
    client = subprocess.Popen([*words, "-N"], stdin=subprocess.DEVNULL)
    until("the plain server lets the client in", lambda: client.poll() is not None or os.path.lexists(control), 60, 0.001)
    took = (time.perf_counter() - t) * 1e3
    client.terminate()
    client.wait()
    return took


def timed(words: list[str]) -> float:
    t = time.perf_counter()
    ran = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=120)
    took = (time.perf_counter() - t) * 1e3
    if ran.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {ran.stderr.decode(errors='replace')}")
    return took


def plain_server(server, sandbox: str, public: str):
    """OpenSSH in the guest, at a port of its own, with a host key of its own."""
    server.out(sandbox, f"""mkdir -p /run/sshd /root/.ssh && chmod 700 /root/.ssh && echo '{public}' >> /root/.ssh/authorized_keys
        test -e /run/plain_key || ssh-keygen -q -t ed25519 -N '' -f /run/plain_key
        /usr/sbin/sshd -p {SSH_PORT} -h /run/plain_key -o PermitRootLogin=yes -o StrictModes=no""", user="root")
    ready = server.done(200, "POST", f"/v1/sandboxes/{sandbox}/ports/{SSH_PORT}/readiness", {"kind": "tcp"})
    assert ready["ready"], ready


def goals(goal, ours: dict):
    """The promises of this part; `goal` takes no notice of figures that are not there."""
    plus = lambda name, more: ours[name] + more if name in ours else None
    base = ours.get("floor_p50_ms")
    goal("through the gateway, median, ms", ours.get("gateway_p50_ms"), plus("floor_p50_ms", 0.5), base)
    base = ours.get(f"floor_{CROWD}_p99_ms")
    goal(f"through the gateway, 99th percentile of {CROWD} connections, ms", ours.get(f"gateway_{CROWD}_p99_ms"), plus(f"floor_{CROWD}_p99_ms", 3), base)
    base = ours.get("floor_large_mb_s")
    goal("through the gateway, bodies of 1 MB, MB/s", ours.get("gateway_large_mb_s"), base and base * 0.8, base, at_least=True)
    goal(f"memory of each of {SOCKETS} WebSockets, KB", ours.get("websocket_memory_kb"), 30)
    goal("echoes lost over them", ours.get("websocket_echoes_lost"), 0)
    goal(f"create with {RULES} rules, ms", ours.get(f"create_with_{RULES}_rules_ms"), plus("create_without_rules_ms", 5), ours.get("create_without_rules_ms"))
    if "ssh_true_ms" in ours:
        goal("true by SSH, ms", ours["ssh_true_ms"], 3 * ours["exec_true_ms"] + ours["ssh_plain_handshake_ms"])
