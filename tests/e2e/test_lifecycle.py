"""Hibernate and resume: a machine that sleeps on the disk and goes on as if nothing had been."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone

import pytest
from nullspace import AsyncSandbox, ConflictError, NotFoundError, Sandbox, SandboxError, Snapshot

import host
import node_disk
from appliance import until
from guest_programs import clock_is_right, count, goes_on, held, holds, start_counter, start_holder

pytestmark = pytest.mark.usefixtures("as_user")


@pytest.fixture
def counting(server):
    """A sandbox with a counter in its memory."""
    sandbox = Sandbox.create(vcpus=1, memory_mb=256, timeout=1800, envs={"KEPT": "yes"}, metadata={"job": "count"}, cwd="/srv", timeout_action="destroy")
    start_counter(server, sandbox.id)
    yield sandbox
    server.destroy(sandbox.id)


def sleeps(server, one: str):
    """Nothing of it takes memory or processor time."""
    assert server.status(one) == "paused"
    assert one not in server.monitors() and not (server.data_dir / "node/machines" / one).exists()
    assert not any(one in process for process in host.processes(server.data_dir))


def resumed_by_connect(sandbox, snapshot, cli):
    return Sandbox.connect(sandbox.id).id


def resumed_by_snapshot_id(sandbox, snapshot, cli):
    return Sandbox.resume(snapshot.id).id


def resumed_by_sandbox_id(sandbox, snapshot, cli):
    return Sandbox.resume(sandbox.id).id


def resumed_by_our_program(sandbox, snapshot, cli):
    return cli.json("sandbox", "resume", sandbox.id)["id"]


@pytest.mark.parametrize("resumed", [resumed_by_connect, resumed_by_snapshot_id, resumed_by_sandbox_id, resumed_by_our_program])
def test_a_hibernated_sandbox_goes_on_where_it_was(server, counting, ours, resumed):
    before = counting.get_info()
    counted = count(server, counting.id)
    snapshot = counting.hibernate()
    assert snapshot.id.startswith("snap_") and snapshot.sandbox_id == counting.id and snapshot.size_bytes > 0
    assert snapshot.metadata == {"job": "count"}
    sleeps(server, counting.id)
    paused = server.done(200, "GET", f"/v1/sandboxes/{counting.id}")
    assert paused["snapshot_id"] == snapshot.id and paused["timeout_at"] is None and paused["timeout_ms"] == before.timeout_ms

    asked = datetime.now(timezone.utc)
    assert resumed(counting, snapshot, ours) == counting.id
    clock_is_right(server, counting.id)
    goes_on(server, counting.id, counted)
    after = counting.get_info()
    assert after.status.value == "running" and server.done(200, "GET", f"/v1/sandboxes/{counting.id}")["snapshot_id"] is None
    assert (after.timeout_ms, after.timeout_action, after.metadata, after.cwd, after.created_at) == (
        before.timeout_ms, before.timeout_action, before.metadata, before.cwd, before.created_at)
    assert (after.timeout_at - asked).total_seconds() >= 1800  # the window began anew
    assert counting.commands.run("echo $KEPT in $PWD", shell=True).stdout == "yes in /srv\n"


def test_pause_and_connect_may_follow_each_other_again_and_again(server, counting):
    for n in range(3):
        counted = count(server, counting.id)
        snapshot = counting.pause()
        # The snapshot of the sleep before is gone; this one took its place.
        assert [s.id for s in Snapshot.list(sandbox_id=counting.id)] == [snapshot.id]
        counting = Sandbox.connect(counting.id, timeout=900 + n)
        goes_on(server, counting.id, counted)
        assert counting.get_info().timeout_ms == (900 + n) * 1000


def test_fifty_megabytes_in_the_memory_of_a_process_come_back_whole(server, temporary):
    one = temporary(memory_mb=512)
    holder = start_holder(server, one, 50)
    server.hibernate(one)
    server.resume(one)
    assert held(server, one, holder, "resumed") == holds(50)


def test_looking_never_wakes_and_working_is_refused(server, counting):
    snapshot = counting.hibernate()
    path = f"/v1/sandboxes/{counting.id}"
    assert counting.id in {s.id for s in Sandbox.list()} and counting.id in {s.id for s in Sandbox.list(state="paused")}
    assert counting.id not in {s.id for s in Sandbox.list(state="running")}
    for look in (path, f"{path}/metrics", f"{path}/lifecycle", f"{path}/tree", f"/v1/snapshots/{snapshot.id}", f"/v1/snapshots/{snapshot.id}/lifecycle"):
        assert server.call("GET", look).status in (200, 409), look
    for method, work, body in (("POST", "exec", {"command": "true"}), ("GET", "processes", None), ("GET", "files?path=/", None),
                               ("POST", "files/write", {"path": "/tmp/x", "content": ""}), ("POST", "snapshots", None), ("POST", "fork", None)):
        answer = server.call(method, f"{path}/{work}", body)
        assert (answer.status, answer.code) == (409, "sandbox_not_ready") and "resume" in str(answer.json), answer
    with pytest.raises(ConflictError) as refused:
        counting.commands.run("true")
    assert refused.value.code == "sandbox_not_ready"
    sleeps(server, counting.id)
    # Asked again to sleep it says in what it does; asked to wake while it is awake it says that it is.
    assert counting.hibernate().id == snapshot.id
    Sandbox.resume(counting.id)
    assert server.resume(counting.id)["status"] == "running"
    assert server.told(counting.id).count("resume_from_snapshot/succeeded") == 1


def test_callers_that_hibernate_and_resume_at_the_same_time_get_the_same(server, counting):
    with ThreadPoolExecutor(8) as pool:
        counted = count(server, counting.id)
        assert len(set(pool.map(lambda _: server.hibernate(counting.id), range(8)))) == 1
        assert {r["id"] for r in pool.map(lambda _: server.resume(counting.id), range(8))} == {counting.id}
    goes_on(server, counting.id, counted)
    told = server.told(counting.id)
    assert told.count("hibernate/succeeded") == told.count("resume_from_snapshot/succeeded") == 1


def test_a_paused_sandbox_is_destroyed_with_its_snapshot(server, counting):
    snapshot = counting.hibernate()
    assert (server.data_dir / "node/checkpoints" / snapshot.id).exists()
    counting.kill()
    assert server.status(counting.id) == "sandbox_not_found"
    for ask in (lambda: Snapshot.get(snapshot.id), lambda: Sandbox.resume(snapshot.id)):
        with pytest.raises(NotFoundError):
            ask()
    until("its files are gone", lambda: not (server.data_dir / "node/checkpoints" / snapshot.id).exists(), 30)


def test_a_context_that_is_left_destroys_a_sandbox_that_was_paused_in_it(server):
    with Sandbox.create(vcpus=1, memory_mb=256) as sandbox:
        sandbox.pause()
    assert server.status(sandbox.id) == "sandbox_not_found"


@pytest.mark.anyio
async def test_the_asynchronous_client_hibernates_and_resumes_too(server):
    async with await AsyncSandbox.create(vcpus=1, memory_mb=256, timeout=600) as sandbox:
        await sandbox.files.write("/workspace/note", "kept")
        snapshot = await sandbox.hibernate()
        again = await AsyncSandbox.resume(snapshot.id)
        assert again.id == sandbox.id and await again.files.read("/workspace/note") == "kept"
        await again.close()


# ---- time ------------------------------------------------------------------------------------


def test_a_sandbox_whose_time_is_over_sleeps_and_wakes_when_it_is_used(server):
    sandbox = Sandbox.create(vcpus=1, memory_mb=256, timeout=1800, on_timeout="pause", auto_resume=True)
    try:
        assert sandbox.get_info().timeout_action.value == "hibernate"
        start_counter(server, sandbox.id)
        counted = count(server, sandbox.id)
        sandbox.set_timeout(1)
        until("it sleeps", lambda: server.status(sandbox.id) == "paused", 60)
        assert sandbox.get_info().timeout_ms == 1000  # looking does not wake
        sleeps(server, sandbox.id)
        # A call wakes it, and proceeds; then its window counts anew, and it sleeps again.
        assert sandbox.commands.run("echo awake", shell=True, timeout=60).stdout == "awake\n"
        until("it sleeps again", lambda: server.told(sandbox.id).count("hibernate/succeeded") == 2, 60)
        goes_on(server, sandbox.id, counted)
        sandbox.set_timeout(600)
        with pytest.raises(SandboxError) as refused:
            sandbox.set_timeout(600, timeout_action="destroy")
        assert refused.value.code == "invalid_request" and "auto_resume" in str(refused.value)
        info = sandbox.get_info()
        assert (info.timeout_ms, info.timeout_action.value) == (600_000, "hibernate")
    finally:
        server.destroy(sandbox.id)


def test_twenty_calls_at_once_wake_a_paused_sandbox_once_and_all_proceed(server):
    sandbox = Sandbox.create(vcpus=1, memory_mb=256, timeout=1800, on_timeout="pause", auto_resume=True)
    try:
        sandbox.files.write("/workspace/note", "kept")
        sandbox.hibernate()
        calls = [lambda n: sandbox.commands.run("echo", [str(n)], timeout=60).stdout == f"{n}\n",
                 lambda n: sandbox.files.read("/workspace/note") == "kept",
                 lambda n: server.done(204, "PUT", f"/v1/sandboxes/{sandbox.id}/file?path=/tmp/{n}", b"x") is None,
                 lambda n: bool(sandbox.commands.run("echo streamed", shell=True, on_stdout=lambda text: None, timeout=60).stdout),
                 lambda n: bool(sandbox.pty.create_session(cols=80, rows=24).session_id)]
        with ThreadPoolExecutor(20) as pool:
            assert all(pool.map(lambda n: calls[n % len(calls)](n), range(20)))
        told = server.told(sandbox.id)
        assert told.count("resume_from_snapshot/succeeded") == 1, told
    finally:
        server.destroy(sandbox.id)


def test_windows_and_sleepers_survive_a_restart_of_the_server(own_server):
    server = own_server(config={"node": {"spare_machines": 0}})
    sleeper, expiring, staying = server.create(timeout_ms=3_600_000), server.create(timeout_action="hibernate"), server.create(timeout_ms=3_600_000)
    start_counter(server, sleeper)
    counted = count(server, sleeper)
    server.hibernate(sleeper)
    server.done(200, "POST", f"/v1/sandboxes/{expiring}/timeout", {"timeout_ms": 1000})
    begin = time.monotonic()
    assert server.stop() == 0
    until("its window is over", lambda: time.monotonic() - begin > 1.5, 10)
    server.start()
    until("the one whose time was over sleeps", lambda: server.status(expiring) == "paused", 60)
    assert "timeout_expired/succeeded" in server.told(expiring)
    sleeps(server, sleeper)
    assert server.status(staying) == "running"
    for one in (sleeper, expiring):
        server.resume(one)
        clock_is_right(server, one)
    goes_on(server, sleeper, counted)
    until("all adds up", lambda: not node_disk.amiss(server), 30)
