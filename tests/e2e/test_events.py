"""The log of lifecycle events: what is told of each change, on every route alike, and streams that miss nothing."""

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from urllib.parse import urlsplit

import pytest
from nullspace import AsyncLifecycle, Lifecycle, Sandbox, SandboxError
from websockets.sync.client import connect

from appliance import until

pytestmark = pytest.mark.usefixtures("as_user")


def said(event: dict) -> str:
    return f"{event['operation']}/{event['status']}"


# ---- what is told ------------------------------------------------------------------------------


def test_every_change_of_a_sandboxs_life_is_told_in_order_with_what_belongs_to_it(server):
    one = server.create(timeout_ms=1_800_000, metadata={"k": "v"})
    server.done(200, "POST", f"/v1/sandboxes/{one}/timeout", {"timeout_ms": 1_700_000, "timeout_action": "hibernate"})
    kept = server.snapshot(one)
    slept = server.hibernate(one)
    server.resume(one)
    [child] = server.fork(one)
    begun = server.create(snapshot_id=kept)
    server.destroy(one)
    events = server.events(one)
    assert [said(e) for e in events] == [
        "create/succeeded", "timeout_updated/requested", "timeout_updated/succeeded", "snapshot_created/succeeded", "hibernate/requested",
        "hibernate/succeeded", "snapshot_created/succeeded", "resume_from_snapshot/succeeded", "fork/succeeded", "destroy/requested", "destroy/succeeded"]
    created, _, updated, snapshot, asked, hibernated, of_sleep, resumed, forked, _, destroyed = events
    assert created["reason"] == "api" and created["metadata"]["timeout_action"] == "destroy"
    assert updated["metadata"]["timeout_action"] == "hibernate"
    assert (snapshot["snapshot_id"], snapshot["metadata"]["created_via"]) == (kept, "api")
    assert (asked["sandbox_id"], hibernated["snapshot_id"], of_sleep["snapshot_id"]) == (one, slept, slept)
    assert of_sleep["metadata"]["created_via"] == "hibernate"
    assert [resumed[k] for k in ("sandbox_id", "source_sandbox_id", "target_sandbox_id", "snapshot_id")] == [one, one, one, slept]
    assert [forked[k] for k in ("sandbox_id", "source_sandbox_id", "target_sandbox_id")] == [child, one, child]
    assert destroyed["reason"] == "manual"
    for event in events:
        assert event["id"].startswith("evt_") and event["audience"] == "customer" and event["actor_kind"] == "user" and event["error_code"] is None
    stamps = [datetime.fromisoformat(e["occurred_at"]) for e in events]
    assert stamps == sorted(stamps)
    # A child's own log begins with its fork; one that began from a snapshot says from which.
    assert [said(e) for e in server.events(child)] == ["fork/succeeded"] and server.events(child)[0] == forked
    assert [(said(e), e["snapshot_id"]) for e in server.events(begun)] == [("create/succeeded", kept)]
    for other in (child, begun):
        server.destroy(other)
    server.done(204, "DELETE", f"/v1/snapshots/{kept}")


@pytest.mark.parametrize("action, sequence", [
    ("destroy", ["create/succeeded", "timeout_expired/succeeded", "destroy/requested", "destroy/succeeded"]),
    ("hibernate", ["create/succeeded", "timeout_expired/succeeded", "hibernate/requested", "hibernate/succeeded", "snapshot_created/succeeded"]),
])
def test_the_end_of_a_window_is_told_with_what_it_led_to(server, action, sequence):
    one = server.create(timeout_ms=1000, timeout_action=action)
    try:
        until("all of it is told", lambda: server.told(one)[-1:] == sequence[-1:], 60)
        events = server.events(one)
        assert [said(e) for e in events] == sequence
        assert all(e["reason"] == "timeout" and e["actor_kind"] == "system" for e in events[1:4]), events
        assert events[1]["metadata"]["timeout_action"] == action
        if action == "hibernate":
            snapshot = server.done(200, "GET", f"/v1/sandboxes/{one}")["snapshot_id"]
            assert [e["snapshot_id"] for e in events[3:]] == [snapshot] * 2
            assert events[4]["metadata"] == {"created_via": "hibernate", "timeout_action": "hibernate"}
    finally:
        server.destroy(one)


def test_the_same_event_has_the_same_id_on_every_route_and_outlives_its_sandbox(server):
    lifecycle = Lifecycle()
    sandbox = Sandbox.create(vcpus=1, memory_mb=256, timeout=600)
    child = sandbox.fork()
    snapshot = sandbox.create_snapshot()
    child.kill()
    sandbox.kill()
    by_parent, by_child = (lifecycle.list_sandbox_events(one.id, order_asc=True).events for one in (sandbox, child))
    [fork] = [e for e in by_parent if e.operation.value == "fork"]
    for found in (by_child, lifecycle.list_events(source_sandbox_id=sandbox.id).events, lifecycle.list_events(target_sandbox_id=child.id).events,
                  lifecycle.list_events(sandbox_id=child.id).events):
        assert fork in found
    [taken] = lifecycle.list_snapshot_events(snapshot.id).events
    assert taken in by_parent and taken in lifecycle.list_events(snapshot_id=snapshot.id).events
    assert [e.operation.value for e in by_child] == ["fork", "destroy", "destroy"]
    server.done(204, "DELETE", f"/v1/snapshots/{snapshot.id}")
    assert lifecycle.list_snapshot_events(snapshot.id).events == [taken]


def test_the_list_has_filters_order_and_offsets(server, sandbox):
    for _ in range(4):
        server.done(200, "POST", f"/v1/sandboxes/{sandbox}/timeout", {"timeout_ms": 1_800_000})
    lifecycle, everything = Lifecycle(), server.events(sandbox)
    assert len(everything) >= 9
    pages = [lifecycle.list_sandbox_events(sandbox, order_asc=True, limit=4, offset=n) for n in range(0, len(everything), 4)]
    assert [e.id for page in pages for e in page.events] == [e["id"] for e in everything]
    assert [page.has_more for page in pages] == [True] * (len(pages) - 1) + [False] and pages[1].offset == pages[1].limit == 4
    assert [e.id for e in lifecycle.list_sandbox_events(sandbox, limit=3).events] == [e["id"] for e in reversed(everything[-3:])]
    requested = lifecycle.list_sandbox_events(sandbox, operation="timeout_updated", status="requested", limit=500).events
    assert len(requested) == sum(said(e) == "timeout_updated/requested" for e in everything)
    middle = everything[-4]["occurred_at"]  # of a call of its own; the two events of one call may have one time
    before, since = (lifecycle.list_sandbox_events(sandbox, limit=500, order_asc=True, **{k: middle}).events for k in ("to_time", "from_time"))
    assert [e.id for e in before + since] == [e["id"] for e in everything] and since[0].id == everything[-4]["id"]


@pytest.mark.parametrize("query, word", [
    ({"audience": "internal"}, "audience"), ({"operation": "explode"}, "operation"), ({"status": "maybe"}, "status"), ({"limit": "0"}, "limit"),
    ({"limit": "501"}, "limit"), ({"offset": "-1"}, "offset"), ({"order": "up"}, "order"), ({"from": "yesterday"}, "from"), ({"to": "1"}, "to"),
    ({"sandbox_id": "nonsense"}, "sandbox_id"), ({"snapshot_id": "sb_" + "0" * 32}, "snapshot_id"),
])
def test_a_list_of_events_asked_wrongly_names_the_parameter(server, query, word):
    answer = server.call("GET", "/v1/lifecycle/events", query=query)
    assert (answer.status, answer.code) == (400, "invalid_request") and word in answer.json["error"], answer


# ---- streams -------------------------------------------------------------------------------------


class Wire:
    """A lifecycle socket, spoken by hand."""

    def __init__(self, server, path="/v1/lifecycle/ws"):
        self.ws = connect(server.url.replace("http", "ws", 1) + path, additional_headers={"Authorization": f"Bearer {server.key}"})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ws.close()

    def subscribe(self, **more) -> dict:
        self.ws.send(json.dumps({"type": "subscribe"} | more))
        return self.hear()

    def hear(self, timeout=60) -> dict:
        return json.loads(self.ws.recv(timeout=timeout))

    def break_off(self):
        """As a connection that dies: without a word."""
        self.ws.socket.shutdown(socket.SHUT_RDWR)


class Forwarder:
    """A way to a server that can be cut, again and again: every connection through it dies at once."""

    def __init__(self, url: str):
        self.target = (urlsplit(url).hostname, urlsplit(url).port)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        self.lines: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self.listening.accept()
            except OSError:
                return  # closed
            far = socket.create_connection(self.target)
            self.lines += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    @staticmethod
    def _pump(one, other):
        try:
            while data := one.recv(1 << 16):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # cut

    def cut(self):
        lines, self.lines = self.lines, []
        for line in lines:
            try:
                line.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it was gone already
            line.close()

    def close(self):
        self.listening.close()
        self.cut()


def touch(server, sandbox: str, times: int):
    """Two events each time."""
    connection = server.http()
    for _ in range(times):
        assert connection("POST", f"/v1/sandboxes/{sandbox}/timeout", {"timeout_ms": 1_800_000}).status == 200
    connection.close()


def test_the_clients_stream_goes_on_through_broken_connections_without_a_gap_or_a_duplicate(server, temporary):
    one = temporary(timeout_ms=1_800_000)
    way, got = Forwarder(server.url), []
    stream = Lifecycle(base_url=way.url).stream_events(sandbox_id=one)
    writing = threading.Thread(target=touch, args=(server, one, 300))
    writing.start()
    try:
        for event in stream:
            got.append(event)
            if event.operation.value == "destroy" and event.status.value == "succeeded":
                break
            if len(got) % 60 == 0 and len(got) <= 480:
                way.cut()
            if len(got) == 590:
                threading.Thread(target=lambda: (writing.join(), server.destroy(one))).start()
    finally:
        stream.close()
        way.close()
        writing.join()
    assert [e.id for e in got] == [e["id"] for e in server.events(one)] and len(got) == 603


def test_replay_and_what_happens_meanwhile_meet_without_a_seam(server):
    """Subscribers come while events are written, each with another idea of the past."""
    one = server.create(timeout_ms=1_800_000)
    touch(server, one, 60)
    past = [e["id"] for e in server.events(one)]
    # What each asks for, and the first that it must hear: later than that where only the newest were asked for.
    specs = [({"replay_limit": 1000}, past[0]), ({}, past[-100]), ({"replay_limit": 7}, past[-7]), ({"live_only": True}, past[-1]),
             ({"after_event_id": past[0]}, past[1]), ({"after_event_id": past[0], "replay_limit": 5, "live_only": True}, past[1])]

    def follow(more):
        with Wire(server, f"/v1/sandboxes/{one}/lifecycle/ws") as wire:
            assert wire.subscribe(**more)["type"] == "subscribed"
            heard = [wire.hear()["event"]]
            while said(heard[-1]) != "destroy/succeeded":
                heard.append(wire.hear()["event"])
            return [e["id"] for e in heard]

    with ThreadPoolExecutor(len(specs) + 1) as pool:
        writing = pool.submit(touch, server, one, 150)
        following = [pool.submit(follow, more) for more, _ in specs]
        writing.result(timeout=120)
        server.destroy(one)
        told = [done.result(timeout=120) for done in following]
    everything = [e["id"] for e in server.events(one)]
    for (more, first), heard in zip(specs, told):
        begin = everything.index(heard[0])
        assert heard == everything[begin:], more
        assert begin == everything.index(first) if "after_event_id" in more else begin >= everything.index(first), more


def test_a_connection_that_dies_is_taken_up_behind_the_last_event(server, temporary):
    one = temporary(timeout_ms=1_800_000)
    writing = threading.Thread(target=touch, args=(server, one, 200))
    writing.start()
    heard, after = [], {}
    while len(heard) < 401:
        with Wire(server) as wire:
            answer = wire.subscribe(sandbox_id=one, **after)
            assert answer["reconnect_mode"] == "after_event_id" and answer["subscription"]["sandbox_id"] == one
            for _ in range(min(37, 401 - len(heard))):
                heard.append(wire.hear()["event"]["id"])
            wire.break_off()
        after = {"after_event_id": heard[-1]}
    writing.join()
    assert heard == [e["id"] for e in server.events(one)]


def test_a_subscription_hears_what_it_asked_for_and_can_be_replaced(server, temporary):
    one = temporary(timeout_ms=1_800_000)
    with Wire(server) as wire:
        wire.subscribe(sandbox_id=one, operation="timeout_updated", status="succeeded", live_only=True)
        touch(server, one, 2)
        assert {said(wire.hear()["event"]) for _ in range(2)} == {"timeout_updated/succeeded"}
        answer = wire.subscribe(sandbox_id=one, operation="snapshot_created", live_only=True, metadata={"created_via": "api"})
        assert answer["type"] == "subscribed" and answer["subscription"]["metadata"] == {"created_via": "api"}
        touch(server, one, 1)
        snapshot = server.snapshot(one)
        event = wire.hear()["event"]
        assert (said(event), event["snapshot_id"]) == ("snapshot_created/succeeded", snapshot)
    server.done(204, "DELETE", f"/v1/snapshots/{snapshot}")


@pytest.mark.parametrize("ask, word", [
    ({"operation": "explode"}, "operation"), ({"audience": "internal"}, "audience"), ({"after_event_id": "evt_" + "0" * 32}, "after_event_id"),
    ({"replay_limit": -1}, "replay_limit"), ({"replay_limit": 1001}, "replay_limit"), ({"sandbox_id": "nonsense"}, "sandbox_id"),
])
def test_a_subscription_asked_wrongly_is_an_error_that_names_the_field(server, ask, word):
    with Wire(server) as wire:
        answer = wire.subscribe(**ask)
        assert answer["type"] == "error" and word in answer["message"], answer


def test_the_client_is_told_by_callback_by_iterator_and_asynchronously(server, temporary):
    one = temporary(timeout_ms=1_800_000)
    lifecycle, told = Lifecycle(), []
    subscription = lifecycle.subscribe(sandbox_id=one, on_event=told.append)
    until("the past is told", lambda: told, 30)
    touch(server, one, 1)
    until("what happens is told", lambda: len(told) == 3, 30)
    subscription.stop()
    wanted = [e["id"] for e in server.events(one)]
    assert [e.id for e in told] == wanted
    stream = Sandbox.connect(one).stream_events()
    assert [next(stream).id for _ in range(3)] == wanted
    stream.close()
    with pytest.raises(SandboxError):
        next(lifecycle.stream_events(after_event_id="evt_" + "0" * 32))


@pytest.mark.anyio
async def test_the_asynchronous_client_lists_and_streams_too(server, sandbox):
    lifecycle = AsyncLifecycle()
    listed = await lifecycle.list_sandbox_events(sandbox, order_asc=True, limit=500)
    stream = lifecycle.stream_events(sandbox_id=sandbox, replay_limit=1000)
    got = [(await anext(stream)).id for _ in listed.events]
    assert got == [e.id for e in listed.events]
    await stream.aclose()
    await lifecycle.close()


def test_a_subscriber_that_never_reads_holds_nobody_up(server, temporary):
    one = temporary(timeout_ms=1_800_000)
    with Wire(server) as deaf, Wire(server) as listening:
        for wire in (deaf, listening):
            wire.subscribe(sandbox_id=one, live_only=True)
        deaf.ws.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        before = server.rss_mib()
        touch(server, one, 1000)
        heard = [listening.hear()["event"]["id"] for _ in range(2000)]
        assert heard == [e["id"] for e in server.events(one)][-2000:]
        assert server.rss_mib() - before < 32
