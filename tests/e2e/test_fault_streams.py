"""Streams and transfers under faults: broken clients, slow clients, a server that is killed in the middle."""

import base64
import hashlib
import http.client
import json
import os
import socket
import threading
import time

import pytest
import websockets.exceptions
from websockets.sync.client import connect

from appliance import until


class Wire:
    """A socket to a sandbox, spoken by hand."""

    def __init__(self, server, sandbox, **more):
        self.ws = connect(server.url.replace("http", "ws", 1) + f"/v1/sandboxes/{sandbox}/ws",
                          additional_headers={"Authorization": f"Bearer {server.key}"}, max_size=1 << 20, **more)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ws.close()

    def say(self, **frame):
        self.ws.send(json.dumps(frame))

    def hear(self, timeout=60):
        return json.loads(self.ws.recv(timeout=timeout))

    def hear_until(self, kind, timeout=60):
        """All frames up to the first of that kind."""
        heard, deadline = [], time.monotonic() + timeout
        while True:
            heard.append(self.hear(max(0.1, deadline - time.monotonic())))
            if heard[-1]["type"] == kind:
                return heard

    def start(self, line, **more):
        self.say(type="exec_start", id="e", command=line, args=[], shell=True, **{"timeout_secs": 300} | more)
        return self.hear_until("exec_started")[-1]["pid"]

    def closed(self):
        with pytest.raises(websockets.exceptions.ConnectionClosed) as end:
            while True:
                self.ws.recv(timeout=30)
        return end.value.rcvd.code if end.value.rcvd else None


# ---- frames ----------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", ["no json", "[]", '"text"', "{}", '{"type": 5}', '{"type": "exec_start"}', '{"type":"no_such_frame","id":"x"}',
                                   '{"type":"exec_start","id":"x","command":5,"args":[],"timeout_secs":1}', "{" * 10_000])
def test_a_first_frame_that_makes_no_sense_is_answered_and_the_socket_closed(server, sandbox, frame):
    with Wire(server, sandbox) as wire:
        wire.ws.send(frame)
        told = wire.hear()
        assert told["type"] == "error" and "invalid message" in told["message"] and told["code"] == "invalid_request"
        wire.closed()


def test_a_frame_that_is_too_large_closes_the_socket_and_nothing_else(server, sandbox):
    with Wire(server, sandbox) as wire:
        pid = wire.start("cat")
        wire.say(type="exec_stdin", id="e", pid=pid, data="x" * (2 << 20))
        assert wire.closed() == 1009
    assert any(p["pid"] == pid and p["running"] for p in server.call("GET", f"/v1/sandboxes/{sandbox}/processes").json)
    server.call("POST", f"/v1/sandboxes/{sandbox}/processes/{pid}/kill")


def test_frames_out_of_order_are_refused_and_the_command_goes_on(server, sandbox):
    with Wire(server, sandbox) as wire:
        wire.say(type="exec_stdin", id="e", pid=1, data="too early")
        assert wire.hear()["type"] == "error"
        wire.closed()
    with Wire(server, sandbox) as wire:
        pid = wire.start("read x; echo got $x")
        wire.ws.send("garbage")
        assert "invalid message" in wire.hear()["message"]
        wire.say(type="exec_start", id="again", command="true", args=[], timeout_secs=1)
        assert wire.hear()["type"] == "error"
        wire.say(type="pty_resize", id="e", session_id="ses_" + "0" * 32, cols=1, rows=1)
        assert wire.hear()["type"] == "error"
        wire.say(type="exec_stdin", id="e", pid=pid, data="line\n")
        heard = wire.hear_until("exec_exit")
        assert "".join(f["data"] for f in heard if f["type"] == "exec_stdout") == "got line\n" and heard[-1]["exit_code"] == 0
        assert wire.closed() == 1000


def test_a_terminal_refuses_nonsense_and_lives_on(server, sandbox):
    with Wire(server, sandbox) as wire:
        wire.say(type="pty_start", id="p", cols=0, rows=10)
        told = wire.hear()
        assert told["type"] == "error" and told["code"] == "invalid_request" and "cols" in told["message"]
    with Wire(server, sandbox) as wire:
        wire.say(type="pty_start", id="p", cols=80, rows=24)
        session = wire.hear()["session_id"]
        for frame in ({"type": "pty_resize", "cols": 0, "rows": 0}, {"type": "pty_input"}, {"type": "pty_input", "data": "a", "data_base64": "YQ=="},
                      {"type": "pty_input", "data_base64": "no base64!"}):
            wire.say(id="p", session_id=session, **frame)
            assert wire.hear_until("error")[-1]["code"] == "invalid_request"
        wire.say(type="pty_input", id="p", session_id=session, data="echo alive-$((1+1)); exit\n")
        heard = wire.hear_until("pty_exited")
        text = b"".join(base64.b64decode(f["data_base64"]) for f in heard if f["type"] == "pty_output")
        assert b"alive-2" in text and heard[-1]["exit_code"] == 0
        assert wire.closed() == 1000


def test_sockets_need_a_key_and_a_sandbox(server, sandbox):
    for path, key, status in ((sandbox, "ns_live_wrong", 401), (sandbox, None, 401), ("sb_" + "0" * 32, server.key, 404)):
        with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
            connect(server.url.replace("http", "ws", 1) + f"/v1/sandboxes/{path}/ws", additional_headers={"Authorization": f"Bearer {key}"} if key else {})
        assert refused.value.response.status_code == status


def test_a_client_that_vanishes_in_the_midst_of_a_frame_harms_nobody(server, sandbox):
    wire = Wire(server, sandbox)
    pid = wire.start("for n in $(seq 1 100000); do echo $n; done > /tmp/vanished; echo done; sleep 86451")
    raw = wire.ws.socket
    raw.sendall(bytes([0x81, 0xFE, 0x40, 0x00, 1, 2, 3, 4]) + b"half a frame")  # 16 KiB were announced
    raw.shutdown(socket.SHUT_RDWR)
    raw.close()
    until("the command goes on", lambda: server.call("GET", f"/v1/sandboxes/{sandbox}/processes/{pid}/logs").json["stdout"] == "done\n", 60)
    assert server.out(sandbox, "wc -l < /tmp/vanished") == "100000"
    server.call("POST", f"/v1/sandboxes/{sandbox}/processes/{pid}/kill")


# ---- slow readers ----------------------------------------------------------------------------


def test_a_client_that_reads_slowly_slows_the_command_and_loses_nothing(server, temporary):
    one, size = temporary(timeout_ms=1_200_000), 64 << 20
    code = ("import sys, time\n"
            f"for n in range({size >> 16}):\n"
            "    sys.stdout.write(f'{n:08}' * 8192); sys.stdout.flush()\n"
            "    open('/tmp/progress', 'w').write(str(n))\n")
    with Wire(server, one) as wire:
        wire.say(type="exec_start", id="e", command="python3", args=["-c", code], timeout_secs=1000)
        before = server.rss_mib()
        heard = wire.hear_until("exec_stdout")

        def stands_still():
            first = server.exec(one, "cat /tmp/progress")["stdout"]
            time.sleep(1)  # what is asked is whether nothing moves in this time
            return first and first == server.exec(one, "cat /tmp/progress")["stdout"] and first

        progress = int(until("the command waits for its reader", stands_still, 60))
        assert progress < (size >> 16) * 0.6, "it did not wait"
        digest, got = hashlib.sha256(), 0
        while True:
            frame = heard.pop() if heard else wire.hear()
            if frame["type"] == "exec_stdout":
                digest.update(frame["data"].encode())
                got += len(frame["data"])
            elif frame["type"] == "exec_exit":
                break
            heard = []
        grown = server.rss_mib() - before
        wanted = hashlib.sha256()
        for n in range(size >> 16):
            wanted.update((f"{n:08}" * 8192).encode())
        assert frame["exit_code"] == 0 and got == size and digest.hexdigest() == wanted.hexdigest()
        assert grown < 48, f"the server's memory grew by {grown:.0f} MiB"


def test_a_reader_that_leaves_sets_the_command_free(server, sandbox):
    wire = Wire(server, sandbox)
    pid = wire.start("head -c 30000000 /dev/zero | tr '\\0' x; echo; echo freed >&2")
    wire.ws.socket.close()
    logs = lambda: server.call("GET", f"/v1/sandboxes/{sandbox}/processes/{pid}/logs").json
    until("it has ended", lambda: any(p["pid"] == pid and not p["running"] for p in server.call("GET", f"/v1/sandboxes/{sandbox}/processes").json), 120)
    ended = logs()
    assert ended["exit_code"] == 0 and ended["stderr"] == "freed\n" and len(ended["stdout"]) == 30_000_001


# ---- the server is killed in the middle --------------------------------------------------------


def test_a_server_killed_in_the_middle_of_everything_loses_no_stream_and_no_part(own_server):
    server = own_server()
    one = server.create(timeout_ms=3_600_000)
    data = os.urandom(24 << 20)
    assert server.call("PUT", f"/v1/sandboxes/{one}/file", data, query={"path": "/workspace/download"}).status == 204
    made = server.call("POST", f"/v1/sandboxes/{one}/uploads", {"kind": "file", "source_kind": "restartable_file", "target_path": "/workspace/upload",
                                                                "content_length": len(data)}).json["session"]
    base, size = f"/v1/sandboxes/{one}/uploads/{made['upload_id']}", made["part_size"]

    def put(n):
        piece = data[n * size:(n + 1) * size]
        return server.call("PUT", f"{base}/parts/{n}", piece, headers={"x-nullspace-part-sha256": hashlib.sha256(piece).hexdigest()})

    assert put(0).status == 200
    stream, watch, screen = Wire(server, one), Wire(server, one), Wire(server, one)
    pid = stream.start("n=0; while [ $n -lt 400 ]; do n=$((n+1)); echo line-$n; sleep 0.02; done; echo end >&2; exit 5")
    watch.say(type="file_watch", id="w", path="/workspace", user=None, recursive=False, timeout_secs=None)
    assert watch.hear()["type"] == "file_watch_started"
    screen.say(type="pty_start", id="p", cols=80, rows=24)
    session = screen.hear()["session_id"]
    screen.say(type="pty_input", id="p", session_id=session, data="echo kept-$((40+2))\n")
    until("it is on the screen", lambda: b"kept-42" in base64.b64decode(screen.hear_until("pty_output")[-1]["data_base64"]), 60)
    heard = stream.hear_until("exec_stdout")
    # A download and an upload of which half is through.
    half = server.http()
    half.connection.request("GET", f"/v1/sandboxes/{one}/file?path=/workspace/download", headers={"Authorization": f"Bearer {server.key}"})
    response = half.connection.getresponse()
    etag, first = response.headers["etag"], response.read(5 << 20)
    broken = server.http()
    broken.connection.putrequest("PUT", f"{base}/parts/1")
    for name, value in (("Authorization", f"Bearer {server.key}"), ("Content-Length", str(size)), ("x-nullspace-part-sha256", "0" * 64)):
        broken.connection.putheader(name, value)
    broken.connection.endheaders()
    broken.connection.send(data[:size // 2])
    raw = server.http()
    raw.connection.putrequest("PUT", f"/v1/sandboxes/{one}/file?path=/workspace/raw")
    raw.connection.putheader("Authorization", f"Bearer {server.key}")
    raw.connection.putheader("Content-Length", str(10 << 20))
    raw.connection.endheaders()
    raw.connection.send(data[:1 << 20])
    server.kill()
    for wire in (stream, watch, screen):
        wire.closed()
    with pytest.raises((OSError, http.client.HTTPException)):
        while first and response.read(1 << 20):
            pass
        raise http.client.IncompleteRead(b"")
    server.start()

    # The command was not touched: all it wrote is there from where the client stopped, and from the start.
    seen = sum(len(f["data"]) for f in heard if f["type"] == "exec_stdout")
    text = "".join(f"line-{n}\n" for n in range(1, 401))
    with Wire(server, one) as again:
        again.say(type="exec_connect", id="e", pid=pid, stdout_offset=seen, stderr_offset=0)
        rest = again.hear_until("exec_exit", 120)
        assert "".join(f["data"] for f in rest if f["type"] == "exec_stdout") == text[seen:]
        assert "".join(f["data"] for f in rest if f["type"] == "exec_stderr") == "end\n" and rest[-1]["exit_code"] == 5
    with Wire(server, one) as again:
        again.say(type="exec_connect", id="e", pid=pid)
        assert "".join(f["data"] for f in again.hear_until("exec_exit") if f["type"] == "exec_stdout") == text
    # The terminal is as it was.
    with Wire(server, one) as again:
        again.say(type="pty_connect", id="p", session_id=session)
        assert again.hear()["type"] == "pty_started"
        until("the screen is drawn again", lambda: b"kept-42" in base64.b64decode(again.hear_until("pty_output")[-1]["data_base64"]), 60)
    # The download goes on where it stopped.
    rest = server.call("GET", f"/v1/sandboxes/{one}/file", query={"path": "/workspace/download"}, headers={"Range": f"bytes={len(first)}-", "If-Range": etag})
    assert rest.status in (200, 206) and (first + rest.body if rest.status == 206 else rest.body) == data
    # The upload has the parts that were whole, and takes the rest.
    assert server.call("GET", base).json["next_part"] == 1
    for n in range(1, made["part_count"]):
        assert put(n).status == 200
    assert server.call("POST", f"{base}/complete", {"whole_checksum_sha256": hashlib.sha256(data).hexdigest()}).status == 200
    # What was half-way is not half there.
    assert server.out(one, "ls -A /workspace") == "download\nupload"
    assert server.out(one, "cmp /workspace/download /workspace/upload && echo same") == "same"


def test_a_guest_link_that_breaks_costs_no_output(own_server):
    """Every connection between node and guest is cut while commands run."""
    server = own_server()
    one = server.create(timeout_ms=3_600_000)
    outcome = {}

    def follow():
        with Wire(server, one) as wire:
            wire.start("n=0; while [ $n -lt 150 ]; do n=$((n+1)); echo line-$n; sleep 0.02; done; exit 3")
            outcome["heard"] = wire.hear_until("exec_exit", 120)

    def foreground():
        outcome["ran"] = server.exec(one, "sleep 2; echo through; exit 4")

    threads = [threading.Thread(target=t) for t in (follow, foreground)]
    [t.start() for t in threads]
    until("both run", lambda: server.exec(one, "pgrep -c sleep")["stdout"].strip() not in ("", "0"), 60)
    cut = server.exec(one, "sleep 0.5; ss -K '( sport = :7000 )' 2>/dev/null | wc -l", background=True)
    assert cut["pid"]
    [t.join(120) for t in threads]
    assert "".join(f["data"] for f in outcome["heard"] if f["type"] == "exec_stdout") == "".join(f"line-{n}\n" for n in range(1, 151))
    assert outcome["heard"][-1]["exit_code"] == 3
    assert (outcome["ran"]["exit_code"], outcome["ran"]["stdout"]) == (4, "through\n")
    server.expected_errors.clear()
