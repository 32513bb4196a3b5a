"""Watching all sandboxes at once: the monitor's stream, and the numbers for the operator."""

import asyncio
import json
import re
import subprocess
import threading

import pytest
from nullspace import AsyncMonitor, Monitor

from appliance import until

pytestmark = pytest.mark.usefixtures("as_user")


class Heard:
    """What a monitor has told, by kind."""

    def __init__(self, **more):
        self.snapshots, self.updates, self.metrics, self.processes, self.errors, self.order = [], [], [], [], [], []
        take = lambda kind: lambda event: (self.order.append(kind), getattr(self, kind).append(event))
        self.subscription = Monitor().subscribe(on_snapshot=take("snapshots"), on_update=take("updates"), on_metrics=take("metrics"),
                                                on_processes=take("processes"), on_error=take("errors"), **more)

    def __enter__(self):
        until("the snapshot is told", lambda: self.snapshots, 30)
        return self

    def __exit__(self, *_):
        self.subscription.stop()

    def statuses(self, sandbox: str) -> list[str]:
        return ["removed" if u.removed else u.sandbox.status.value for u in self.updates if u.sandbox_id == sandbox]


def test_a_monitor_tells_what_is_there_then_what_changes(server, sandbox):
    with Heard(interval_ms=250) as heard:
        assert heard.order[0] == "snapshots" and len(heard.snapshots) == 1
        [seen] = [s for s in heard.snapshots[0].sandboxes if s.id == sandbox]
        assert (seen.status.value, seen.config.vcpus, seen.config.memory_mb, seen.template) == ("running", 1, 256, "base")
        one = server.create(metadata={"seen": True})
        until("it runs", lambda: "running" in heard.statuses(one), 30)
        server.hibernate(one)
        until("it sleeps", lambda: heard.statuses(one)[-1] == "paused", 30)
        server.resume(one)
        until("it runs again", lambda: heard.statuses(one)[-1] == "running", 30)
        [child] = server.fork(one)
        until("its child is there", lambda: "running" in heard.statuses(child), 30)
        for each in (one, child):
            server.destroy(each)
            until("it is gone", lambda: heard.statuses(each)[-1:] == ["removed"], 30)
        assert heard.statuses(one).count("removed") == 1 and not heard.errors
        assert all(u.sandbox.metadata == {"seen": True} for u in heard.updates if u.sandbox_id == one and not u.removed)


def test_a_monitor_tells_what_each_uses_and_runs(server, temporary):
    one, asleep = temporary(), temporary()
    server.background(one, "sleep", "86499")
    server.hibernate(asleep)
    with Heard(interval_ms=250, include_processes=True) as heard:
        until("three samples have come", lambda: sum(m.sandbox_id == one for m in heard.metrics) >= 3, 60)
        sample = [m.metrics for m in heard.metrics if m.sandbox_id == one][-1]
        assert sample.cpu_count == 1 and sample.cpu_percent >= 0 and 0 < sample.mem_used_bytes < sample.mem_total_bytes <= 256 << 20
        until("its process is told", lambda: any(p.command.startswith("sleep 86499") and p.running for told in heard.processes
                                                 if told.sandbox_id == one for p in told.processes), 60)
    assert asleep not in {m.sandbox_id for m in heard.metrics} and server.status(asleep) == "paused"
    with Heard() as heard:
        until("a sample has come", lambda: heard.metrics, 60)
        assert heard.processes == []


def test_a_monitor_asked_for_more_than_there_is_goes_as_fast_as_it_can(sandbox):
    sampled = threading.Event()
    subscription = Monitor().subscribe(interval_ms=1, on_metrics=lambda event: event.sandbox_id == sandbox and sampled.set())
    assert sampled.wait(30)
    subscription.stop()


@pytest.mark.anyio
async def test_the_asynchronous_monitor_tells_the_same(sandbox):
    seen = asyncio.Event()
    subscription = await AsyncMonitor().subscribe(on_snapshot=lambda event: any(s.id == sandbox for s in event.sandboxes) and seen.set())
    await asyncio.wait_for(seen.wait(), 30)
    await subscription.stop()


def test_another_tenant_is_told_nothing_of_mine(server, sandbox):
    other = json.loads(server.keys("create", "--tenant", "watcher", "--json"))["secret"]
    seen, updates = threading.Event(), []
    told = []
    subscription = Monitor(api_key=other, base_url=server.url).subscribe(
        interval_ms=250, on_snapshot=lambda event: (told.extend(event.sandboxes), seen.set()), on_update=updates.append, on_metrics=updates.append)
    assert seen.wait(30)
    with Heard(interval_ms=250) as heard:
        server.done(200, "POST", f"/v1/sandboxes/{sandbox}/timeout", {"timeout_ms": 1_800_000})
        until("I am told", lambda: heard.statuses(sandbox), 30)
    assert told == [] == updates
    subscription.stop()


def test_metrics_of_a_sandbox_are_there_at_once_and_bounded(server, temporary):
    one = temporary()
    first = server.done(200, "GET", f"/v1/sandboxes/{one}/metrics")
    assert 1 <= len(first) and first[-1]["mem_total_bytes"] > 0
    server.out(one, "timeout 2 sh -c 'while :; do :; done'; true")
    busy = until("it was seen to work", lambda: [m for m in server.done(200, "GET", f"/v1/sandboxes/{one}/metrics") if m["cpu_percent"] > 20], 60)
    assert busy and server.done(200, "GET", f"/v1/sandboxes/{one}/metrics")[-1]["network_rx_bytes"] > 0


# ---- the operator's ------------------------------------------------------------------------------


SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(\{[^}]*\})? ([-+.\deE]+|NaN|\+Inf)$")


def scraped(server) -> dict[str, float]:
    answer = server.call("GET", "/metrics", key=None)
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/plain; version=0.0.4"), answer
    found = {}
    for line in answer.body.decode().splitlines():
        if line and not line.startswith("#"):
            name, labels, value = SAMPLE.match(line).groups()
            found[name + (labels or "")] = float(value)
    return found


def total(numbers: dict[str, float], name: str) -> float:
    return sum(value for key, value in numbers.items() if key.partition("{")[0] == name)


def test_the_operators_numbers_count_what_happens(server, temporary):
    before = scraped(server)
    one = temporary()
    server.hibernate(one)
    server.resume(one)
    for child in server.fork(one):
        server.destroy(child)
    server.done(204, "DELETE", f"/v1/snapshots/{server.snapshot(one)}")
    assert server.call("GET", "/v1/sandboxes?limit=0").status == 400
    after = scraped(server)
    for name in ("sandbox_create", "sandbox_hibernate", "sandbox_resume", "sandbox_fork", "snapshot_create"):
        assert total(after, f"nullspace_{name}_seconds_count") > total(before, f"nullspace_{name}_seconds_count"), name
    pauses = [total(numbers, "nullspace_checkpoint_pause_seconds_count") for numbers in (before, after)]
    assert pauses[1] >= pauses[0] + 2
    assert total(after, "nullspace_events_total") > total(before, "nullspace_events_total")
    errors = 'nullspace_api_errors_total{code="invalid_request"}'
    assert after[errors] == before.get(errors, 0) + 1
    assert total(after, "nullspace_machines") >= 1 and total(after, "nullspace_disk_free_bytes") > 1 << 20
    assert any(key.startswith("nullspace_sandboxes{") and 'status="running"' in key for key in after)


def test_the_operators_numbers_are_not_for_whoever_comes_through_a_proxy(server):
    for header in ("X-Forwarded-For", "Forwarded"):
        answer = server.call("GET", "/metrics", key=None, headers={header: "for=203.0.113.7"})
        assert (answer.status, answer.code) == (401, "unauthorized")
        assert server.call("GET", "/metrics", headers={header: "for=203.0.113.7"}).status == 200


# ---- from the command line -------------------------------------------------------------------------


def test_the_monitor_is_streamed_on_the_command_line(cli, server, temporary):
    one = temporary()
    lines = [json.loads(line) for line in cli("monitor", "stream", "--interval-ms", "250", "--include-processes", "--max-events", "6", "--timeout", "60").stdout.splitlines()]
    assert len(lines) >= 6 and one in {s["id"] for s in lines[0]["sandboxes"]}
    assert any("metrics" in line for line in lines)


def test_top_shows_every_sandbox_in_one_table_or_as_json(ours, server, temporary):
    one, asleep = temporary(), temporary()
    server.hibernate(asleep)
    table = ours("top", "--once").stdout
    assert one in table and asleep in table and "running" in table and "paused" in table and "\x1b[" not in table
    shown = json.loads(ours("top", "--once", "--json").stdout.splitlines()[0])
    assert one in json.dumps(shown) and asleep in json.dumps(shown)


def test_gc_shows_and_does_what_the_background_does(ours, own_server):
    server = own_server(config={"node": {"spare_machines": 0}})
    one = server.create()
    snapshot = server.snapshot(one)
    stray = server.data_dir / "node/layers" / ("0" * 32 + ".qcow2")
    stray.write_bytes(bytes(1 << 20))
    gc = ("gc", "--data-dir", str(server.data_dir))
    shown = ours(*gc).stdout
    assert stray.stem in shown and stray.exists()
    told = ours(*gc, "--json", "--apply").stdout
    assert stray.stem in told and not stray.exists()
    assert stray.stem not in ours(*gc, "--apply").stdout
    # Nothing that anybody needs is ever in it.
    assert server.out(one, "echo alive") == "alive" and server.out(server.create(snapshot_id=snapshot), "echo alive") == "alive"
    server.stop()
    refused = subprocess.run([ours.program, *gc], capture_output=True, text=True, timeout=60, env=ours.env, cwd=ours.cwd)
    assert refused.returncode == 1 and "nullspace server" in refused.stderr
