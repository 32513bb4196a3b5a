"""The part `lifecycle` of bench.py: what it costs to fork, to sleep and to wake, to have thousands of sandboxes in
the store, and to tell their events to many.

Machines have 512 MiB, with Python running in them and 50 MB changed since the template; the floor forks and clones
by turns with them. What is about the store and the log alone is measured over machines in memory.
"""

import json
import multiprocessing
import os
import random
import re
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path

import node_disk
from appliance import Appliance, until
from guest_programs import start_holder
from measure import Socket, memory_available_mib, private_mib, say, settle

CHANGED_MIB = 48  # 50 MB
CHILDREN = 16
SUBSCRIBERS = 20
SANDBOXES = 10_000
WRITING_SECONDS = 5
# Whose figure of ours is shown beside which of the floor's.
SAME = {"fork_pause_ms": "fork_pause_ms", "fork_50_mb_pause_ms": "fork_pause_ms", "fork_first_command_ms": "fork_first_command_ms",
        "fork_50_mb_first_command_ms": "fork_first_command_ms", f"fork_{CHILDREN}_wall_ms": f"burst_{CHILDREN}_wall_ms",
        "fork_private_mib": "private_mib", "fork_50_mb_private_mib": "private_mib"}


def measure(ours, floor, directory: Path, size: dict, args):
    rounds = max(3, args.rounds // 4)
    forks(ours, floor, size, rounds)
    crowds(ours, floor, size, args.bursts)
    naps(ours, size, rounds)
    sleepers(ours, args.crowd)
    server = Appliance(directory / "fake", config={"node": {
        "driver": "fake", "checkpoint_dir": str(directory / "fake-checkpoints"), "spare_machines": 0, "max_machines": 2 * SANDBOXES,
        "memory_overcommit": 1e6, "memory_reserve_mb": 0}})
    server.start()
    try:
        thousands(ours, server, args.rounds * 20)
        log(ours, server)
        ours.note("fake_server_errors", len(server.unexpected_errors()))
    finally:
        server.kill()  # its machines are in its memory


def ran(http, sandbox: str):
    answer = http("POST", f"/v1/sandboxes/{sandbox}/exec", {"command": "true"})
    if answer.status != 200 or answer.json["exit_code"] != 0:
        raise RuntimeError(f"first command: {answer}")


def done(http, status: int, method: str, path: str, body=None) -> dict:
    answer = http(method, path, body)
    if answer.status != status:
        raise RuntimeError(f"{method} {path}: {answer}")
    return answer.json


# ---- forks ---------------------------------------------------------------------------------------


def pauses(server) -> tuple[float, float]:
    """How many machines stood still for a capture so far, and for how many seconds in all, as the server counts it."""
    text = server.call("GET", "/metrics", key=None).body.decode()
    value = lambda what: sum(float(v) for v in re.findall(rf"^nullspace_checkpoint_pause_seconds_{what}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))
    return value("count"), value("sum")


def fork(ours, http, parent: str, name: str):
    """One child, from the call to its first command; the parent's pause; and what the child costs while it idles."""
    count, seconds = pauses(ours.server)
    t = time.perf_counter()
    child = done(http, 201, "POST", f"/v1/sandboxes/{parent}/fork")["id"]
    ours.note(f"{name}_call_ms", (time.perf_counter() - t) * 1e3)
    ran(http, child)
    ours.note(f"{name}_first_command_ms", (time.perf_counter() - t) * 1e3)
    more, longer = pauses(ours.server)
    if more != count + 1:
        raise RuntimeError(f"a fork stopped its parent {more - count:.0f} times")
    ours.note(f"{name}_pause_ms", (longer - seconds) * 1e3)
    settle()
    ours.note(f"{name}_private_mib", private_mib(ours.server.monitors()[child]))
    ours.note(f"{name}_disk_mb", node_disk.used_mb(ours.server.data_dir / "node/machines" / child))
    ours.server.destroy(child)


def copying_ms() -> float:
    """50 MB once from one place of the memory to another."""
    source, target = bytearray(os.urandom(50_000_000)), bytearray(os.urandom(50_000_000))
    t = time.perf_counter()
    target[:] = source
    return (time.perf_counter() - t) * 1e3


def forks(ours, floor, size: dict, rounds: int):
    say(f"forks, one at a time: {rounds} rounds by turns")
    server, http = ours.server, ours.server.http(timeout=600)
    idle, busy = (server.create(**size, timeout_ms=3_600_000) for _ in range(2))
    start_holder(server, busy, CHANGED_MIB)
    ran(http, idle)
    for n in range(rounds):
        floor.restore(f"l{n}", keep=True)
    for n in range(rounds):
        settle()
        fork(ours, http, idle, "fork")
        settle()
        fork(ours, http, busy, "fork_50_mb")
        settle()
        floor.fork(n)
        ours.note("copy_50_mb_ms", copying_ms())
    floor.end_kept()
    for one in (idle, busy):
        server.destroy(one)
    http.close()


def crowds(ours, floor, size: dict, turns: int):
    say(f"{CHILDREN} children of one fork: {turns} turns")
    server = ours.server
    parent = server.create(**size, timeout_ms=3_600_000)
    start_holder(server, parent, CHANGED_MIB)
    lines = [server.http(timeout=600) for _ in range(CHILDREN)]
    for n in range(turns):
        settle()
        free, t = memory_available_mib(), time.perf_counter()
        children = [c["id"] for c in done(lines[0], 201, "POST", f"/v1/sandboxes/{parent}/fork", {"count": CHILDREN})["items"]]
        with ThreadPoolExecutor(CHILDREN) as pool:
            list(pool.map(ran, lines, children))
        ours.note(f"fork_{CHILDREN}_wall_ms", (time.perf_counter() - t) * 1e3)
        settle()
        ours.note(f"fork_{CHILDREN}_memory_each_mib", (free - memory_available_mib()) / CHILDREN)
        ours.destroy(children)
        settle()
        floor.burst(CHILDREN, f"k{n}-")
    server.destroy(parent)
    for line in lines:
        line.close()


# ---- sleep ---------------------------------------------------------------------------------------


def written_ms(directory: Path, size: int) -> float:
    """How long `dd` takes to write so many bytes to the same disk, until they are on it."""
    source, target = Path("/dev/shm") / f"nullspace-bench-{os.getpid()}", directory / "dd"
    source.write_bytes(os.urandom(size))
    try:
        t = time.perf_counter()
        subprocess.run(["dd", f"if={source}", f"of={target}", "bs=1M", "conv=fsync", "status=none"], check=True)
        return (time.perf_counter() - t) * 1e3
    finally:
        source.unlink()
        target.unlink(missing_ok=True)


def naps(ours, size: dict, rounds: int):
    say(f"hibernate and resume: {rounds} rounds")
    server, http = ours.server, ours.server.http(timeout=600)
    for _ in range(rounds):
        one = server.create(**size, timeout_ms=3_600_000)
        start_holder(server, one, CHANGED_MIB)
        settle()
        t = time.perf_counter()
        snapshot = done(http, 200, "POST", f"/v1/sandboxes/{one}/hibernate")
        ours.note("hibernate_ms", (time.perf_counter() - t) * 1e3)
        ours.note("hibernate_mb", snapshot["size_bytes"] / 1e6)
        settle()
        ours.note("hibernate_dd_ms", written_ms(server.data_dir, snapshot["size_bytes"]))
        settle()
        t = time.perf_counter()
        done(http, 200, "POST", f"/v1/sandboxes/{one}/resume")
        ran(http, one)
        ours.note("resume_first_command_ms", (time.perf_counter() - t) * 1e3)
        server.destroy(one)
        settle()
        made, _, first = ours.first_command(http, size)
        ours.note("create_first_command_ms", first)
        server.destroy(made)
    http.close()


def sleepers(ours, count: int):
    """Sandboxes that sleep: they have no process, and cost the server next to nothing."""
    say(f"{count} hibernated")
    server = ours.server
    settle()
    before = server.rss_mib()

    def nap(_):
        one = server.create(timeout_ms=3_600_000)
        server.hibernate(one)
        return one

    with ThreadPoolExecutor(4) as pool:
        asleep = list(pool.map(nap, range(count)))
    settle()
    ours.note("sleepers", len(asleep))
    ours.note("sleepers_machines", len(server.monitors()) + len(node_disk.machines(server)))
    ours.note("sleepers_server_growth_mib", server.rss_mib() - before)
    ours.note("sleepers_disk_each_mb", node_disk.used_mb(server.data_dir / "node") / count)
    server.resume(asleep[0])
    ran(server.http(), asleep[0])
    ours.destroy(asleep)
    until("nothing is left of them", lambda: not node_disk.checkpoints(server), 60)


# ---- the store and the log -------------------------------------------------------------------------


def thousands(ours, server: Appliance, asks: int):
    """List, get and filtered lists with ten thousand sandboxes in the store."""
    say(f"{SANDBOXES} sandboxes in the store")
    width = 8
    lines = threading.local()

    def make(n):
        http = lines.__dict__.setdefault("http", server.http())
        body = {"metadata": {"n": n, "group": n % 100}, "timeout_ms": 2_592_000_000}
        return done(http, 201, "POST", "/v1/sandboxes", body)["id"]

    with ThreadPoolExecutor(width) as pool:
        made = list(pool.map(make, range(SANDBOXES)))
    settle()
    http, choice = server.http(), random.Random(0)
    asked = {"list": lambda: ("/v1/sandboxes?limit=100", lambda found: len(found["items"]) == 100),
             "get": lambda: (f"/v1/sandboxes/{(one := choice.choice(made))}", lambda found: found["id"] == one),
             "filtered_list": lambda: (f"/v1/sandboxes?state=running&limit=100&metadata=%7B%22group%22:{choice.randrange(100)}%7D",
                                       lambda found: len(found["items"]) == SANDBOXES // 100)}
    for name, ask in asked.items():
        took = []
        for _ in range(asks):
            path, right = ask()
            t = time.perf_counter()
            answer = http("GET", path)
            took.append((time.perf_counter() - t) * 1e3)
            if answer.status != 200 or not right(answer.json):
                raise RuntimeError(f"{path}: {answer}")
        ours.note(f"{name}_of_{SANDBOXES}_ms", *took)
        ours.note(f"{name}_of_{SANDBOXES}_p99_ms", sorted(took)[int(len(took) * 0.99)])
    http.close()


def subscriber(server: Appliance, last: str, ready) -> tuple[list[str], float]:
    """The IDs of the events that one subscriber heard, up to the end of sandbox `last`, and when that was."""
    ws, heard, wanted = Socket(server, "/v1/lifecycle/ws"), [], last.encode()
    ws.say(type="subscribe", live_only=True)
    if ws.hear()["type"] != "subscribed":
        raise RuntimeError("the server did not take the subscription")
    ready.wait()
    while True:
        frame = ws.raw()
        heard.append(frame)
        if wanted in frame and json.loads(frame)["event"]["operation"] == "destroy" and json.loads(frame)["event"]["status"] == "succeeded":
            break
    ended = time.perf_counter()
    ws.close()
    return [json.loads(frame)["event"]["id"] for frame in heard], ended


def listen(server: Appliance, last: str, count: int, ready, results):
    """What a process of its own does: so many subscribers."""
    with ThreadPoolExecutor(count) as pool:
        for one in pool.map(lambda _: subscriber(server, last, ready), range(count)):
            results.put(one)


def log(ours, server: Appliance):
    """Events as fast as they can be written, told to twenty subscribers at once."""
    say(f"events to {SUBSCRIBERS} subscribers")
    boxes, last = [server.create(timeout_ms=2_592_000_000) for _ in range(32)], server.create()
    system = multiprocessing.get_context("fork")
    ready, results = system.Barrier(SUBSCRIBERS + 1), system.Queue()
    listening = [system.Process(target=listen, args=(server, last, SUBSCRIBERS // 4, ready, results)) for _ in range(4)]
    for process in listening:
        process.start()
    ready.wait(60)
    settle()
    stamp, begin = datetime.now(timezone.utc).isoformat(), time.perf_counter()

    def write(mine):
        http, calls = server.http(), 0
        while time.perf_counter() - begin < WRITING_SECONDS:
            done(http, 200, "POST", f"/v1/sandboxes/{mine[calls % len(mine)]}/timeout", {"timeout_ms": 2_592_000_000})
            calls += 1
        http.close()
        return calls

    with ThreadPoolExecutor(8) as pool:
        calls = sum(pool.map(write, [boxes[n::8] for n in range(8)]))
    written = time.perf_counter() - begin
    server.destroy(last)
    told = [results.get(timeout=120) for _ in range(SUBSCRIBERS)]
    for process in listening:
        process.join()
    wanted = [e["id"] for e in server.events(**{"from": stamp})]
    place = {event: n for n, event in enumerate(wanted)}
    ours.note("events", len(wanted))
    ours.note("events_written_per_s", 2 * calls / written)
    ours.note("events_told_per_s", len(wanted) / (max(ended for _, ended in told) - begin))
    ours.note("events_missing", sum(len(set(wanted) - set(ids)) for ids, _ in told))
    ours.note("events_twice_or_out_of_order", sum(ids != sorted(set(ids), key=place.get) for ids, _ in told))


# ---- goals ---------------------------------------------------------------------------------------


def goals(goal, ours: dict, floor: dict):
    """The promises of this part; `goal` takes no notice of figures that are not there."""
    pause, copy, dd = floor.get("fork_pause_ms"), ours.get("copy_50_mb_ms"), ours.get("hibernate_dd_ms")
    with_copy = pause + copy if pause and copy else None
    times = lambda value, factor: value * factor if value else None
    goal("fork, the parent's pause, ms", ours.get("fork_pause_ms"), pause, pause)
    goal("fork with 50 MB changed, the parent's pause, ms", ours.get("fork_50_mb_pause_ms"), with_copy, pause)
    for name, what in (("fork", "fork"), ("fork_50_mb", "fork with 50 MB changed")):
        goal(f"{what} to the child's first command, ms", ours.get(f"{name}_first_command_ms"), times(floor.get("fork_first_command_ms"), 1.3),
             floor.get("fork_first_command_ms"))
        goal(f"{what}, private memory of the idle child, MiB", ours.get(f"{name}_private_mib"),
             floor["private_mib"] + 15 if "private_mib" in floor else None, floor.get("private_mib"))
        goal(f"{what}, the child's disk, MB", ours.get(f"{name}_disk_mb"), 5)
    burst = floor.get(f"burst_{CHILDREN}_wall_ms")
    goal(f"{CHILDREN} children of one fork, wall, ms", ours.get(f"fork_{CHILDREN}_wall_ms"), times(burst, 1.3), burst)
    if dd and "fork_50_mb_pause_ms" in ours:
        goal("hibernate, ms", ours.get("hibernate_ms"), dd * 1.5 + ours["fork_50_mb_pause_ms"])
    goal("resume to first command, ms", ours.get("resume_first_command_ms"), times(ours.get("create_first_command_ms"), 1.2))
    goal(f"machines of {ours.get('sleepers', 0):g} hibernated sandboxes", ours.get("sleepers_machines"), 0)
    goal("the server's growth with them, MiB", ours.get("sleepers_server_growth_mib"), 16)
    for name in ("list", "get", "filtered_list"):
        goal(f"{name.replace('_', ' ')} of {SANDBOXES} sandboxes, 99th percentile, ms", ours.get(f"{name}_of_{SANDBOXES}_p99_ms"), 20)
    goal(f"events a second, written and told to {SUBSCRIBERS}", ours.get("events_told_per_s"), 1000, at_least=True)
    goal("events missing", ours.get("events_missing"), 0)
    goal("subscribers that heard one twice or out of order", ours.get("events_twice_or_out_of_order"), 0)
    goal("errors that the server over machines in memory logged", ours.get("fake_server_errors"), 0)
