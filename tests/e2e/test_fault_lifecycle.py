"""Whatever dies in the middle of a capture, a restore, a fork or an end: nothing is half there, nothing is shared, nothing leaks."""

import http.client
import json
import os
import random
import re
import subprocess
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

import host
import node_disk
from appliance import REPOSITORY, until
from guest_programs import clock_is_right, count, goes_on, held, holds, start_counter, start_holder

STEPS = re.findall(r'^    "([a-z_.]+)",$', (REPOSITORY / "crates/node/src/crash.rs").read_text(), re.MULTILINE)


# ---- kill -9 at every step ---------------------------------------------------------------------


class Journey:
    """A server that is killed again and again, and what lives in it: one that runs, one that sleeps, and a snapshot."""

    def __init__(self, server):
        self.server = server
        self.running = self.asleep = self.snapshot = self.key = None

    def mend(self):
        """Has all of it there, as it shall be before the next crash, and nothing else."""
        server, listed = self.server, {s["id"]: s["status"] for s in self.server.listed()}
        for one in set(listed) - {self.running, self.asleep}:
            server.destroy(one)
        if self.asleep not in listed:
            self.asleep = self.made()
        if server.status(self.asleep) == "running":
            server.hibernate(self.asleep)
        if self.running not in listed:
            self.running = self.made()
            start_counter(server, self.running)
            self.counted = count(server, self.running)
        if server.status(self.running) == "paused":
            server.resume(self.running)
        needed = server.done(200, "GET", f"/v1/sandboxes/{self.asleep}")["snapshot_id"]
        kept = {s["id"] for s in server.snapshots()}
        if self.snapshot not in kept:
            self.snapshot = server.snapshot(self.running)
        for snapshot in kept - {self.snapshot, needed}:
            server.done(204, "DELETE", f"/v1/snapshots/{snapshot}")
        self.key = None
        until("all adds up", lambda: not node_disk.amiss(server), 30)

    def made(self) -> str:
        one = self.server.create(timeout_ms=3_600_000)
        self.server.out(one, f"echo {one} > /srv/me")
        return one

    # What is being done when the server dies.
    def snapshots(self, ask):
        ask("POST", f"/v1/sandboxes/{self.running}/snapshots")

    def hibernates(self, ask):
        ask("POST", f"/v1/sandboxes/{self.running}/hibernate")

    def forks(self, ask):
        self.key = {"Idempotency-Key": uuid.uuid4().hex}
        ask("POST", f"/v1/sandboxes/{self.running}/fork", {"count": 2}, headers=self.key)

    def resumes(self, ask):
        ask("POST", f"/v1/sandboxes/{self.asleep}/resume")

    def begins(self, ask):
        ask("POST", "/v1/sandboxes", {"snapshot_id": self.snapshot})

    def destroys(self, ask):
        ask("DELETE", f"/v1/sandboxes/{self.running}")

    def destroys_asleep(self, ask):
        ask("DELETE", f"/v1/sandboxes/{self.asleep}")

    def deletes(self, ask):
        ask("DELETE", f"/v1/snapshots/{self.snapshot}")


# What passes the steps of each kind; and what does not pass one of them.
DOES = {"capture": [Journey.snapshots, Journey.forks, Journey.hibernates], "checkpoint": [Journey.hibernates, Journey.snapshots],
        "hibernate": [Journey.hibernates], "restore": [Journey.resumes, Journey.forks, Journey.begins], "destroy": [Journey.destroys],
        "checkpoint_delete": [Journey.deletes, Journey.destroys_asleep, Journey.forks]}
NOT = {("capture.resumed", Journey.hibernates)}


def crashes():
    """Each step in one of what passes it, by turns; with NULLSPACE_E2E_EVERY_CRASH=1 each in all of it."""
    for n, step in enumerate(STEPS):
        does = [d for d in DOES[step.partition(".")[0]] if (step, d) not in NOT]
        for one in does if os.environ.get("NULLSPACE_E2E_EVERY_CRASH") else [does[n % len(does)]]:
            yield pytest.param(step, one, id=f"{step}-{one.__name__}")


@pytest.fixture(scope="module")
def journeys(module_server):
    """Gives the journey that goes on from one crash to the next; a new one where the last crash was not survived."""
    journey = None

    def give() -> Journey:
        nonlocal journey
        if journey is None or not journey.survived:
            journey = Journey(module_server(config={"node": {"spare_machines": 0, "ready_slots": 4}}))
        journey.survived = False
        journey.mend()
        return journey

    return give


@pytest.mark.parametrize("step, does", list(crashes()))
def test_a_server_killed_at_any_step_comes_back_with_all_whole(journeys, step, does):
    journey = journeys()
    server = journey.server
    server.kill()
    server.start(env={"NULLSPACE_CRASH_AT": step})

    def ask(method, path, body=None, **more):
        connection = server.http()
        try:
            connection(method, path, body, **more)
        except (OSError, http.client.HTTPException):
            pass  # it died; what came of it is seen afterwards
        finally:
            connection.close()

    does(journey, ask)
    assert server.process.wait(20) == -9
    server.start()
    # What was asked for goes on, or was given up: until that is told, nothing is as it will stay.
    until("nothing is on its way", lambda: not any(server.told(s["id"])[-1].endswith("/requested") for s in server.listed()), 60)
    until("all adds up", lambda: not node_disk.amiss(server), 60)

    # What runs, runs; what sleeps can be woken; each has its own files; nobody is somebody else.
    listed = {s["id"]: s["status"] for s in server.listed()}
    hibernations = {server.done(200, "GET", f"/v1/sandboxes/{one}")["snapshot_id"] for one, status in listed.items() if status == "paused"}
    for one, status in listed.items():
        if status == "paused":
            server.resume(one)
    me = {one: server.out(one, "cat /srv/me; hostname").split() for one in listed}
    assert len({hostname for _, hostname in me.values()}) == len(listed)
    assert all(me[one][0] == one for one in (journey.running, journey.asleep) if one in listed)
    assert journey.running in listed or does is Journey.destroys
    assert journey.asleep in listed or does is Journey.destroys_asleep
    if journey.running in listed:
        goes_on(server, journey.running, journey.counted)
        clock_is_right(server, journey.running)
    # Every other snapshot that is listed can be begun from.
    for snapshot in {s["id"] for s in server.snapshots()} - hibernations:
        begun = server.create(snapshot_id=snapshot)
        assert server.out(begun, "cat /srv/me").startswith("sb_")
    # A fork that was asked for is done, once, when it is asked for again.
    if does is Journey.forks:
        children = server.done(201, "POST", f"/v1/sandboxes/{journey.running}/fork", {"count": 2}, headers=journey.key)["items"]
        tree = server.done(200, "GET", f"/v1/sandboxes/{journey.running}/tree")["items"]
        forked = {i["id"] for i in tree if i["parent_id"] == journey.running and i["snapshot_id"] is None and i["status"] != "destroyed"}
        assert forked == {c["id"] for c in children} and len(forked) == 2
    journey.mend()
    journey.survived = True


def test_nothing_is_left_of_all_that_was_killed(journeys):
    server = journeys().server
    server.destroy_all()
    server.delete_snapshots()
    until("nothing is left", lambda: not node_disk.amiss(server) and not node_disk.machines(server) and not node_disk.checkpoints(server), 30)
    assert not node_disk.layers(server) and not any("qemu-system" in p for p in host.processes(server.data_dir))


# ---- the disk ------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_during_a_capture_costs_nothing_but_the_capture(small_disk, own_server):
    server = own_server(data_dir=small_disk / "data", config={"node": {"disk_reserve_mb": 8, "spare_machines": 0}})
    one = server.create(timeout_ms=3_600_000, memory_mb=512)
    holder = start_holder(server, one, 120)
    start_counter(server, one)
    ballast = small_disk / "ballast"
    subprocess.run(["fallocate", "-l", f"{int(host.free_mib(small_disk) - 60)}M", ballast], check=True)
    for verb, told in (("snapshots", "snapshot_created/failed"), ("hibernate", "hibernate/failed")):
        counted = count(server, one)
        answer = server.call("POST", f"/v1/sandboxes/{one}/{verb}")
        assert (answer.status, answer.code) == (503, "capacity_exceeded") and "disk" in answer.json["error"], answer
        assert server.told(one)[-1] == told and server.status(one) == "running"
        goes_on(server, one, counted)
    until("nothing is left of it", lambda: not node_disk.amiss(server), 30)
    assert server.snapshots() == []
    ballast.unlink()
    counted = count(server, one)
    server.hibernate(one)
    server.resume(one)
    goes_on(server, one, counted)
    assert held(server, one, holder, "whole") == holds(120)


def changed(path, at: int):
    with open(path, "r+b") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ 0x10]))


@pytest.mark.parametrize("file", ["memory", "devices"])
def test_a_snapshot_whose_files_were_changed_is_refused_and_the_sandbox_sleeps_on(server, temporary, file):
    one = temporary()
    path = server.data_dir / "node/checkpoints" / server.hibernate(one) / file
    at = path.stat().st_size // 2
    changed(path, at)
    answer = server.call("POST", f"/v1/sandboxes/{one}/resume")
    assert (answer.status, answer.code) == (409, "snapshot_corrupted") and answer.json["retryable"] is False, answer
    assert server.status(one) == "paused" and server.told(one)[-1] == "resume_from_snapshot/failed" and one not in server.monitors()
    assert not (server.data_dir / "node/machines" / one).exists()
    changed(path, at)
    server.resume(one)
    assert server.out(one, "echo alive") == "alive"


def test_a_snapshot_of_another_kind_of_machine_is_refused_by_the_difference_and_never_tried(own_server):
    server = own_server(config={"node": {"spare_machines": 0}})
    one = server.create()
    snapshot = server.hibernate(one)
    record = server.data_dir / "node/checkpoints" / snapshot / "checkpoint.json"
    for field, word in (("version", "version"), ("cpu", "processor"), ("machine", "machine type")):
        assert server.stop() == 0
        as_it_was = record.read_text()
        other = json.loads(as_it_was)
        other["monitor"][field] = "another-0.1"
        record.write_text(json.dumps(other))
        server.start()
        for method, path, body in (("POST", f"/v1/sandboxes/{one}/resume", None), ("POST", "/v1/sandboxes", {"snapshot_id": snapshot})):
            answer = server.call(method, path, body)
            assert (answer.status, answer.code) == (409, "incompatible_snapshot"), answer
            assert word in answer.json["error"] and "another-0.1" in answer.json["error"], answer
        assert server.status(one) == "paused" and not server.monitors()
        record.write_text(as_it_was)
    server.stop()
    server.start()
    server.resume(one)
    assert server.out(one, "echo alive") == "alive"


# ---- monitors that die --------------------------------------------------------------------------


def test_a_monitor_that_is_killed_during_a_hibernation_is_an_error_and_leaves_nothing(server, temporary):
    one = temporary(memory_mb=512)
    start_holder(server, one, 100)
    pid = server.monitors()[one]
    with ThreadPoolExecutor(1) as pool:
        connection = server.http()
        asked = pool.submit(connection, "POST", f"/v1/sandboxes/{one}/hibernate")
        until("it is being captured", lambda: asked.done() or any((server.data_dir / "node/checkpoints").glob("making-*")), 30, 0.001)
        try:
            os.kill(pid, 9)
        except ProcessLookupError:
            pass  # it was quicker: what is checked holds all the same
        answer = asked.result(timeout=120)
        connection.close()
    if answer.status == 200:
        server.resume(one)
        assert server.out(one, "echo alive") == "alive"
    else:
        until("the loss is shown", lambda: server.status(one) == "error", 60)
    server.destroy(one)
    until("nothing is left of it", lambda: not any(one in line for line in node_disk.amiss(server)) and
          not any((server.data_dir / "node/checkpoints").glob("making-*")), 30)


# ---- fifty at once --------------------------------------------------------------------------------


# What may follow what, of one sandbox, in the log: the events that are legal in each state, and where they lead.
MODEL = {
    "running": {"hibernate/requested": "hibernating", "destroy/requested": "destroying"},
    "hibernating": {"hibernate/succeeded": "slept", "hibernate/failed": "running", "destroy/requested": "destroying"},
    "slept": {"snapshot_created/succeeded of hibernate": "paused"},
    "paused": {"resume_from_snapshot/succeeded": "running", "resume_from_snapshot/failed": "paused", "destroy/requested": "destroying"},
    "destroying": {"hibernate/failed": "destroying", "resume_from_snapshot/failed": "destroying", "destroy/succeeded": "destroyed"},
    "destroyed": {},
}
# Tasks of their own, which end when they end: a child that was captured is born whatever becomes of its parent.
ASIDE = {"fork/succeeded", "fork/failed", "snapshot_created/succeeded of api", "snapshot_created/failed of api"}


def said(event: dict) -> str:
    via = event["metadata"].get("created_via", "api") if event["operation"] == "snapshot_created" else None
    return f"{event['operation']}/{event['status']}" + (f" of {via}" if via else "")


@pytest.mark.parametrize("seed", [1, 2])
def test_fifty_calls_at_once_on_one_sandbox_leave_it_in_a_state_that_its_log_leads_to(own_server, seed):
    server = own_server(config={"node": {"spare_machines": 0}})
    one = server.create(timeout_ms=3_600_000, timeout_action="hibernate", auto_resume=True)
    path, choice = f"/v1/sandboxes/{one}", random.Random(seed)
    calls = ([("POST", f"{path}/exec", {"command": "true"})] * 18 + [("POST", f"{path}/hibernate", None)] * 12 + [("POST", f"{path}/resume", None)] * 12
             + [("POST", f"{path}/fork", None)] * 5 + [("POST", f"{path}/snapshots", None)] * 2 + [("DELETE", path, None)])
    choice.shuffle(calls)
    calls.sort(key=lambda call: call[0] == "DELETE")  # it comes when much has happened

    def ask(call):
        connection = server.http(timeout=300)
        try:
            return connection(*call)
        finally:
            connection.close()

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, calls))
    for call, answer in zip(calls, answers):
        known = answer.status in (200, 201, 204) or answer.code in ("sandbox_not_ready", "sandbox_not_found", "transition_in_progress", "capacity_exceeded",
                                                                    "exec_failed", "snapshot_not_found")
        assert known, (call, answer)
    assert answers[-1].status == 200 and server.status(one) == "sandbox_not_found"
    children = [a.json["id"] for call, a in zip(calls, answers) if call[1].endswith("fork") and a.status == 201]
    until("all adds up", lambda: not node_disk.amiss(server), 60)
    assert {s["id"] for s in server.listed()} == set(children)
    for child in children:
        assert server.out(child, "echo alive") == "alive"

    told = server.events(one)
    assert said(told[0]) == "create/succeeded"
    state = "running"
    for word in map(said, told[1:]):
        if word not in ASIDE:
            assert word in MODEL[state], (state, word, list(map(said, told)))
            state = MODEL[state][word]
    assert state == "destroyed"
    assert {e["target_sandbox_id"] for e in told if said(e) == "fork/succeeded"} >= set(children)
