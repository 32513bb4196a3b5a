#!/usr/bin/env python3
"""What is promised about speed and memory, measured against the floor in the same run.

    bench.py [--quick] [--rounds N] [--json bench.json] [--parts single,burst,crowd,data,lifecycle,network] [--strict]

A server of its own (its data directory in the cache, port 0) and the floor program (floor.py) take
turns, each after the host has come to rest, so that a drift of the host's load hits both alike.
Everything of ours is measured from outside, over plain HTTP on kept connections, streams over WebSockets. It prints each figure
with its ratio to the floor and says which goals were met; with --strict an unmet goal fails the run.

Needs root, the guest image, and bin/nullspace built for release (or another in NULLSPACE_BIN).
"""
import argparse
import hashlib
import http.client
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))
import host  # noqa: E402
import lifecycle  # noqa: E402
import network  # noqa: E402
from appliance import Appliance, Http, binary, cache, until  # noqa: E402
from floor import Floor  # noqa: E402
from measure import Socket, Watched, memory_available_mib, private_mib, say, settle  # noqa: E402

PARTS = ["single", "burst", "crowd", "data", "lifecycle", "network"]
SIZE = {"vcpus": 1, "memory_mb": 512}  # as the floor's machine
CROWD = {"vcpus": 1, "memory_mb": 256}


def server_timing(answer) -> dict[str, float]:
    """Milliseconds by name from `Server-Timing: guest;dur=38.1, total;dur=39.0`."""
    return {name: float(ms) for name, ms in re.findall(r"([\w-]+);dur=([\d.]+)", answer.headers.get("server-timing") or "")}


class Ours:
    """Our side of each measurement, in milliseconds, MiB and counts."""

    def __init__(self, server: Appliance):
        self.server, self.figures = server, {}

    def note(self, name, *values):
        self.figures.setdefault(name, []).extend(values)

    def first_command(self, http: Http, size: dict) -> tuple[str, float, float]:
        """A create and its first command: the ID, and the milliseconds until created and until the exit code came."""
        t = time.perf_counter()
        made = http("POST", "/v1/sandboxes", size)
        if made.status != 201:
            raise RuntimeError(f"create: {made}")
        created = time.perf_counter()
        ran = http("POST", f"/v1/sandboxes/{made.json['id']}/exec", {"command": "true"})
        if ran.status != 200 or ran.json["exit_code"] != 0:
            raise RuntimeError(f"first command: {ran}")
        return made.json["id"], (created - t) * 1e3, (time.perf_counter() - t) * 1e3

    def single(self, http: Http):
        one, created, ran = self.first_command(http, SIZE)
        self.note("create_ms", created)
        self.note("create_first_command_ms", ran)
        # Right after a create the server makes what the next one will take; "later" is when that is done.
        t = time.perf_counter()
        assert http("POST", f"/v1/sandboxes/{one}/exec", {"command": "true"}).status == 200
        self.note("exec_right_after_create_ms", (time.perf_counter() - t) * 1e3)
        settle()
        for _ in range(5):
            t = time.perf_counter()
            answer = http("POST", f"/v1/sandboxes/{one}/exec", {"command": "true"})
            total, timing = (time.perf_counter() - t) * 1e3, server_timing(answer)
            self.note("exec_ms", total)
            if "guest" in timing:
                self.note("exec_guest_ms", timing["guest"])
                self.note("exec_overhead_seen_by_client_ms", total - timing["guest"])
                self.note("exec_overhead_ms", timing.get("total", total) - timing["guest"])
        for name, method, path, body in (
            ("file_write_ms", "POST", "files/write", {"path": "/workspace/f", "content": "x" * 1000}),
            ("file_read_ms", "POST", "files/read", {"path": "/workspace/f"}),
        ):
            t = time.perf_counter()
            assert http(method, f"/v1/sandboxes/{one}/{path}", body).status == 200
            self.note(name, (time.perf_counter() - t) * 1e3)
        self.note("private_mib", private_mib(self.server.monitors()[one]))
        t = time.perf_counter()
        assert http("DELETE", f"/v1/sandboxes/{one}").status == 200
        self.note("destroy_ms", (time.perf_counter() - t) * 1e3)

    def at_once(self, n: int, size: dict, name: str, width: int | None = None) -> list[str]:
        """`n` creates at once, each until its first command has ended; their IDs, and the failures as figures."""
        lines = [self.server.http(timeout=600) for _ in range(n)]

        def one(http):
            try:
                return self.first_command(http, size)
            except (RuntimeError, OSError) as error:
                return error

        t = time.perf_counter()
        with ThreadPoolExecutor(width or n) as pool:
            done = list(pool.map(one, lines))
        self.note(f"{name}_wall_ms", (time.perf_counter() - t) * 1e3)
        failed = [d for d in done if isinstance(d, Exception)]
        for error in failed[:3]:
            say(f"  failed: {error}")
        self.note(f"{name}_failures", len(failed))
        for http in lines:
            http.close()
        return [d[0] for d in done if not isinstance(d, Exception)]

    def upload(self, sandbox: str, path: str, size: int) -> float:
        """A file of so many bytes, streamed in; MB/s."""
        block = os.urandom(1 << 20)
        line = http.client.HTTPConnection(self.server.url.removeprefix("http://"), timeout=600)
        line.connect()
        t = time.perf_counter()
        line.putrequest("PUT", f"/v1/sandboxes/{sandbox}/file?path={path}")
        line.putheader("Authorization", f"Bearer {self.server.key}")
        line.putheader("Content-Length", str(size))
        line.endheaders()
        try:
            for _ in range(size // len(block)):
                line.sock.sendall(block)
        except BrokenPipeError:
            pass  # refused; the answer says why
        answer = line.getresponse()
        told = answer.read()
        if answer.status != 204:
            raise RuntimeError(f"upload: {answer.status} {told}")
        line.close()
        return size / (time.perf_counter() - t) / 1e6

    def download(self, sandbox: str, path: str, size: int) -> float:
        """The same file, streamed out; MB/s."""
        line = http.client.HTTPConnection(self.server.url.removeprefix("http://"), timeout=600)
        line.connect()
        buffer, got, t = bytearray(1 << 20), 0, time.perf_counter()
        line.request("GET", f"/v1/sandboxes/{sandbox}/file?path={path}", headers={"Authorization": f"Bearer {self.server.key}"})
        answer = line.getresponse()
        while n := answer.readinto(buffer):
            got += n
        line.close()
        if answer.status != 200 or got != size:
            raise RuntimeError(f"download: {answer.status}, {got} bytes")
        return size / (time.perf_counter() - t) / 1e6

    def transfer(self, sandbox: str):
        """256 MiB in and out."""
        with Watched(self.server) as memory:
            settle()
            self.note("upload_mb_s", self.upload(sandbox, "/workspace/file", 256 << 20))
            settle()
            self.note("download_mb_s", self.download(sandbox, "/workspace/file", 256 << 20))
        self.note("transfer_server_growth_mib", memory.grown)

    def large_file(self, sandbox: str, size: int):
        """A file far larger than the server's memory may be."""
        with Watched(self.server) as memory:
            self.upload(sandbox, "/var/tmp/large", size)
            self.download(sandbox, "/var/tmp/large", size)
        self.note("large_file_gib", size / (1 << 30))
        self.note("large_file_server_growth_mib", memory.grown)
        self.server.exec(sandbox, "rm /var/tmp/large")

    def stream(self, sandbox: str):
        """200 MB of output of one command over a WebSocket, and its checksum."""
        size, digest, got = 200 << 20, hashlib.sha256(), 0

        def take(frame):
            nonlocal got
            if frame["type"] == "exec_stdout":
                data = frame["data"].encode()
                got += len(data)
                digest.update(data)

        line = "0123456789abcdef" * 4096
        ws = Socket(self.server, f"/v1/sandboxes/{sandbox}/ws?channel=exec")
        settle()
        with Watched(self.server) as memory:
            t = time.perf_counter()
            ws.run("python3", ["-c", f"import sys\nfor _ in range({size >> 16}): sys.stdout.write('0123456789abcdef' * 4096)"], take)
            self.note("stream_mb_s", size / (time.perf_counter() - t) / 1e6)
        ws.close()
        wanted = hashlib.sha256()
        for _ in range(size >> 16):
            wanted.update(line.encode())
        self.note("stream_bytes_missing", 0 if got == size and digest.digest() == wanted.digest() else max(1, size - got))
        self.note("stream_server_growth_mib", memory.grown)

    def socket_exec(self, sandbox: str, rounds: int):
        """`true` over an open WebSocket each, and the agent's own time for it over HTTP, by turns."""
        for _ in range(rounds):
            answer = self.server.call("POST", f"/v1/sandboxes/{sandbox}/exec", {"command": "true"})
            self.note("true_guest_ms", server_timing(answer)["guest"])
            ws = Socket(self.server, f"/v1/sandboxes/{sandbox}/ws?channel=exec")
            t = time.perf_counter()
            if ws.run("true") != 0:
                raise RuntimeError("true failed")
            self.note("true_over_socket_ms", (time.perf_counter() - t) * 1e3)
            ws.close()

    def batch(self, sandbox: str, count=1000, alone=100):
        """Small files in one call, and one by one."""
        content = b"x" * 200
        names = [f"/workspace/batch/{n % 10}/{n}.txt" for n in range(count)]
        edge = "nullspace-bench"
        part = lambda name, extra, body: (f"--{edge}\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{extra}\"\r\n\r\n").encode() + body + b"\r\n"
        manifest = json.dumps({"files": [{"path": name, "field": f"file{n}"} for n, name in enumerate(names)], "user": None}).encode()
        body = part("manifest", "manifest.json", manifest) + b"".join(part(f"file{n}", f"file{n}.bin", content) for n in range(count)) + f"--{edge}--\r\n".encode()
        settle()
        t = time.perf_counter()
        answer = self.server.call("POST", f"/v1/sandboxes/{sandbox}/files/batch-write", body, headers={"Content-Type": f"multipart/form-data; boundary={edge}"})
        self.note("batch_1000_ms", (time.perf_counter() - t) * 1e3)
        if answer.status != 200 or [r["status"] for r in answer.json["results"]] != ["success"] * count:
            raise RuntimeError(f"batch: {answer}")
        settle()
        t = time.perf_counter()
        for name in names[:alone]:
            answer = self.server.call("POST", f"/v1/sandboxes/{sandbox}/files/write", {"path": name.replace("batch", "alone"), "content": content.decode()})
            assert answer.status == 200, answer
        self.note("one_by_one_1000_ms", (time.perf_counter() - t) * 1e3 * count / alone)

    def search(self, sandbox: str):
        """20,000 files of 10 KB: ours, and `grep -r` in the guest, by turns."""
        code = ("import os\nline = 'the quick brown fox jumps over the lazy dog 0123456789 and so on\\n'\n"
                "for n in range(20000):\n"
                "    os.makedirs(f'/workspace/tree/{n // 200}', exist_ok=True)\n"
                "    open(f'/workspace/tree/{n // 200}/{n}.txt', 'w').write(line * 152 + (f'needle {n}\\n' if n % 1000 == 0 else ''))\n")
        assert self.server.exec(sandbox, "python3", "-c", code, timeout_secs=600)["exit_code"] == 0
        for _ in range(4):
            settle()
            t = time.perf_counter()
            found = self.server.call("POST", f"/v1/sandboxes/{sandbox}/files/find", {"path": "/workspace/tree", "pattern": "needle [0-9]+"})
            self.note("search_ms", (time.perf_counter() - t) * 1e3)
            assert found.status == 200 and len(found.json) == 20, found
            settle()
            t = time.perf_counter()
            ran = self.server.exec(sandbox, "grep -rnE 'needle [0-9]+' /workspace/tree | wc -l", timeout_secs=600)
            self.note("grep_ms", (time.perf_counter() - t) * 1e3)
            assert ran["stdout"].strip() == "20", ran

    def destroy(self, made: list[str], width=8):
        with ThreadPoolExecutor(width) as pool:
            list(pool.map(self.server.destroy, made))

    def burst(self, n: int):
        made = self.at_once(n, SIZE, f"burst_{n}")
        self.note("server_rss_mib", self.server.rss_mib())
        self.destroy(made)

    def crowd(self, n: int):
        settle()
        free = memory_available_mib()
        made = self.at_once(n, CROWD, f"crowd_{n}", width=20)
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda one: self.server.exec(one, "echo", one)["stdout"].strip() == one, made))
        self.note(f"crowd_{n}_answering", sum(answers))
        self.note(f"crowd_{n}_memory_mib", free - memory_available_mib())
        self.note(f"crowd_{n}_server_rss_mib", self.server.rss_mib())
        t = time.perf_counter()
        self.destroy(made)
        self.note(f"crowd_{n}_destroy_wall_ms", (time.perf_counter() - t) * 1e3)
        until("no machine is left", lambda: not self.server.monitors(), 60)

    def medians(self) -> dict[str, float]:
        return {name: round(statistics.median(values), 2) for name, values in self.figures.items()}


def cold_boot_ms(server: Appliance) -> float | None:
    """The cold boot of the same template and size, as recorded when the checkpoint was made."""
    for record in Path(server.config["node"]["checkpoint_dir"]).rglob("*.json"):
        try:
            data = json.loads(record.read_text())
        except ValueError:
            continue
        shape = data.get("shape", data)
        if isinstance(shape, dict) and (shape.get("vcpus"), shape.get("memory_mb")) == (SIZE["vcpus"], SIZE["memory_mb"]) and "boot_ms" in data:
            return float(data["boot_ms"])
    return None


def acceleration() -> str:
    """What the program found on this host."""
    told = subprocess.run([binary(), "doctor", "--json"], capture_output=True, text=True, timeout=300)
    try:
        probe = next(p for p in json.loads(told.stdout)["probes"] if "accel" in p["name"])
        return "kvm" if (probe.get("details") or {}).get("acceleration") == "kvm" else "tcg"
    except (ValueError, KeyError, StopIteration):
        return "tcg"


def goals(ours: dict, floor: dict, left: list[str], args) -> list[dict]:
    """Each promise: its figure, what it is judged against, and whether it holds. Absent figures are no goals."""
    out = []

    def goal(name, value, limit, floor_value=None, aim=None, at_least=False):
        if value is None or limit is None:
            return
        out.append({"name": name, "value": round(value, 2), "floor": floor_value, "limit": round(limit, 2), "aim": aim and round(aim, 2),
                    "ratio": round(value / floor_value, 2) if floor_value else None, "met": value >= limit if at_least else value <= limit,
                    "at_least": at_least})

    def times(name, factor):
        return floor[name] * factor if name in floor else None

    def plus(name, more):
        return floor[name] + more if name in floor else None

    b, c = args.burst, args.crowd
    first = ours.get("create_first_command_ms")
    goal("create to first command, ms", first, times("restore_first_command_ms", 1.3), floor.get("restore_first_command_ms"),
         aim=times("restore_first_command_ms", 0.9))
    goal(f"{b} at once, wall, ms", ours.get(f"burst_{b}_wall_ms"), times(f"burst_{b}_wall_ms", 1.3), floor.get(f"burst_{b}_wall_ms"))
    goal(f"{b} at once, failures", ours.get(f"burst_{b}_failures"), 0)
    boots = [x for x in (floor.get("boot_ms"), ours.get("cold_boot_ms")) if x]
    if first and boots:
        goal("faster than a cold boot, times", min(boots) / first, 10, at_least=True)
    goal("later exec of true, ms", ours.get("exec_ms"), plus("command_ms", 3), floor.get("command_ms"))
    goal("the server's share of it, ms", ours.get("exec_overhead_ms"), 2)
    goal("private memory of an idle sandbox, MiB", ours.get("private_mib"), plus("private_mib", 12), floor.get("private_mib"))
    goal(f"server memory with {b} sandboxes, MiB", ours.get("server_rss_mib"), 150)
    goal("upload of 256 MiB, MB/s", ours.get("upload_mb_s"), times("up_mb_s", 0.6), floor.get("up_mb_s"), at_least=True)
    goal("download of 256 MiB, MB/s", ours.get("download_mb_s"), times("down_mb_s", 0.6), floor.get("down_mb_s"), at_least=True)
    goal("the server's growth meanwhile, MiB", ours.get("transfer_server_growth_mib"), 32)
    goal(f"the server's growth with {ours.get('large_file_gib', 0):g} GiB in and out, MiB", ours.get("large_file_server_growth_mib"), 32)
    goal("bytes missing of 200 MB streamed", ours.get("stream_bytes_missing"), 0)
    goal("the server's growth meanwhile, MiB", ours.get("stream_server_growth_mib"), 32)
    if guest := ours.get("true_guest_ms"):
        goal("true over an open socket, ms", ours.get("true_over_socket_ms"), guest * 1.5 + 2)
    if alone := ours.get("one_by_one_1000_ms"):
        goal("1,000 files in a batch, times faster", alone / ours["batch_1000_ms"], 20, at_least=True)
    if grep := ours.get("grep_ms"):
        goal("search of 20,000 files, ms", ours.get("search_ms"), grep * 1.5)
    goal(f"{c} sandboxes at once, answering", ours.get(f"crowd_{c}_answering"), c, at_least=True)
    lifecycle.goals(goal, ours, floor)
    network.goals(goal, ours)
    goal("left on the host at the end, things", len(left), 0)
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--quick", action="store_true", help="5 rounds, one burst, a crowd of 30: to see whether it runs, not how fast")
    p.add_argument("--rounds", type=int, help="single machines on each side, by turns (20)")
    p.add_argument("--bursts", type=int, help="bursts on each side, by turns (3)")
    p.add_argument("--burst", type=int, default=20, help="machines in a burst")
    p.add_argument("--crowd", type=int, help="machines alive at once at the end (100)")
    p.add_argument("--parts", default=",".join(PARTS), help=f"which of {', '.join(PARTS)} to run, separated by commas")
    p.add_argument("--accel", choices=["tcg", "kvm"], help="of the floor (default: what the program found)")
    p.add_argument("--json", type=Path, default=Path("bench.json"), help="where the figures go (bench.json)")
    p.add_argument("--strict", action="store_true", help="exit with 1 if a goal is not met")
    args = p.parse_args()
    args.rounds = args.rounds or (5 if args.quick else 20)
    args.bursts = args.bursts or (1 if args.quick else 3)
    args.crowd = args.crowd or (30 if args.quick else 100)
    args.large = 1 if args.quick else 4
    parts = args.parts.split(",")
    if wrong := [x for x in parts if x not in PARTS]:
        p.error(f"--parts: no part is called {wrong[0]!r}; there are {', '.join(PARTS)}")
    if not binary().exists():
        sys.exit(f"{binary()} is not there: `make build` makes it, or name another in NULLSPACE_BIN")

    directory = cache() / f"bench-{os.getpid()}"
    server = Appliance(directory / "server")
    # The same without spare machines: each create restores one. Shown beside, for what spares are worth.
    bare = Appliance(directory / "bare", config={"node": {"spare_machines": 0, "ready_slots": 4}})
    before, begin = host.inventory(set()), time.monotonic()
    floor = Floor(args.accel or acceleration())
    ours, left, ended = Ours(server), [], False
    try:
        with floor:
            say(f"floor: booting and capturing ({floor.accel})")
            floor.prepare()
            floor.boot()
            say("servers: starting")
            server.start()
            http = server.http(timeout=600)
            # The first of each size makes its checkpoint, once per image; that is not what is measured.
            for size in (CROWD, SIZE):
                server.destroy(ours.first_command(http, size)[0])
            if "single" in parts:
                bare.start()
                bare_http = bare.http(timeout=600)
                bare.destroy(ours.first_command(bare_http, SIZE)[0])
            if boot := cold_boot_ms(server):
                ours.note("cold_boot_ms", boot)
            if "single" in parts:
                say(f"one at a time: {args.rounds} rounds by turns")
                for n in range(args.rounds):
                    settle()
                    ours.single(http)
                    settle()
                    floor.restore(f"c{n}")
                    settle()
                    made, _, ran = ours.first_command(bare_http, SIZE)
                    ours.note("create_first_command_without_spares_ms", ran)
                    bare.destroy(made)
                bare.end()
            if "burst" in parts:
                for n in range(args.bursts):
                    say(f"{args.burst} at once: turn {n + 1} of {args.bursts}")
                    settle()
                    ours.burst(args.burst)
                    settle()
                    floor.burst(args.burst, f"b{n}-")
            if "data" in parts:
                say("data: transfers, streams, batches, searches")
                floor.restore("data", keep=True)
                one = server.create(**SIZE, disk_mb=1024 * (args.large + 4), timeout_ms=3_600_000)
                ours.socket_exec(one, args.rounds)
                for _ in range(args.bursts):
                    settle()
                    floor.transfer()
                    ours.transfer(one)
                server.exec(one, "rm -f /workspace/file")
                ours.stream(one)
                ours.batch(one)
                ours.search(one)
                ours.large_file(one, args.large << 30)
                server.destroy(one)
                floor.end_kept()
            if "lifecycle" in parts:
                say("lifecycle: forks, sleepers, the store and the log")
                lifecycle.measure(ours, floor, directory, SIZE, args)
            if "network" in parts:
                network.measure(ours, directory, SIZE, args)
            if "crowd" in parts:
                if memory_available_mib() < args.crowd * 120:
                    say(f"SKIP: a crowd of {args.crowd} needs about {args.crowd * 120} MiB of memory, {memory_available_mib():.0f} are free")
                else:
                    say(f"{args.crowd} alive at once")
                    ours.crowd(args.crowd)
        server.end()
        ended = True

        def clean():
            nonlocal left
            ours_only = {host.instance(s.data_dir) for s in (server, bare)}
            left = sorted((host.inventory(ours_only) - before) | host.processes(directory))
            left += [str(x) for s in (server, bare) for kind in ("machines", "spares", "checkpoints", "layers") for x in s.data_dir.glob(f"node/{kind}/*")]
            return not left

        try:
            until("nothing is left", clean, 30, 0.5)
        except AssertionError:
            say("left on the host:\n  " + "\n  ".join(left))
    except BaseException:
        say(f"the server's log is {server.log}")
        say(server.tail(15) if server.log.exists() else "(empty)")
        raise
    finally:
        for s in (server, bare):
            if ended or s.process is None:
                continue
            try:
                s.end()
            except (AssertionError, OSError) as error:
                say(f"the server could not be ended: {error}")
                s.kill()
    logged = [line for s in (server, bare) if s.log.exists() for line in s.unexpected_errors()]
    for line in logged[:10]:
        say(f"the server logged: {line}")

    figures, base = ours.medians(), floor.medians()
    judged = goals(figures, base, left, args)
    print(f"{'figure':42} {'median':>10} {'min':>10} {'max':>10} {'n':>4}   {'floor':>9} {'ratio':>6}")
    same = {"create_first_command_ms": "restore_first_command_ms", "create_first_command_without_spares_ms": "restore_first_command_ms", "exec_ms": "command_ms", "private_mib": "private_mib",
            f"burst_{args.burst}_wall_ms": f"burst_{args.burst}_wall_ms", **lifecycle.SAME, "upload_mb_s": "up_mb_s", "download_mb_s": "down_mb_s"}
    for name, values in ours.figures.items():
        against = base.get(same.get(name, ""))
        print(f"{name:42} {figures[name]:10.2f} {min(values):10.2f} {max(values):10.2f} {len(values):4}"
              + (f"   {against:9.2f} {figures[name] / against:6.2f}" if against else ""))
    for name, values in floor.figures.items():
        scale = 1e3 if name.endswith("_ms") else 1
        print(f"{'floor ' + name:42} {base[name]:10.2f} {min(values) * scale:10.2f} {max(values) * scale:10.2f} {len(values):4}")
    print()
    for g in judged:
        bound = f"{'at least' if g['at_least'] else 'at most'} {g['limit']:g}"
        extra = f", {g['ratio']:.2f} of the floor" if g["ratio"] is not None else ""
        extra += f", aim {g['aim']:g} {'reached' if g['value'] <= g['aim'] else 'missed'}" if g["aim"] else ""
        print(f"{'met ' if g['met'] else 'MISSED'} {g['name']}: {g['value']:g} ({bound}{extra})")
    met = sum(g["met"] for g in judged)
    print(f"{met} of {len(judged)} goals met in {time.monotonic() - begin:.0f} s")
    args.json.write_text(json.dumps({
        "host": {"cpus": os.cpu_count(), "memory_mib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 20)),
                 "kernel": platform.release(), "acceleration": floor.accel, "load": os.getloadavg()},
        "rounds": args.rounds, "ours": figures, "floor": base, "goals": judged, "left": left,
    }, indent=1) + "\n")
    if not left and not logged:
        shutil.rmtree(directory)
    else:
        say(f"the server's data and log are in {directory}")
    if args.strict and met < len(judged):
        sys.exit(1)


if __name__ == "__main__":
    main()
