"""Whatever dies, whenever: what runs still runs, what is listed exists, nothing leaks."""

import http.client
import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

import host
from appliance import cache, until
from host import free_mib


def settled(server, expected: set[str]):
    """The list, the machines and the processes agree on exactly these sandboxes, and each answers."""
    def agree():
        listed = {s["id"] for s in server.listed() if s["status"] == "running"}
        return listed == set(server.monitors()) == expected

    until(f"exactly {len(expected)} sandboxes are listed and have a process", agree, 60)
    for one in expected:
        assert server.out(one, "echo alive") == "alive"


def create_with(server, key: str):
    """The ID that a create with this idempotency key answers; None if the server went away meanwhile."""
    connection = server.http()
    try:
        while True:
            answer = connection("POST", "/v1/sandboxes", {}, headers={"Idempotency-Key": key})
            if answer.status == 201:
                return answer.json["id"]
            if answer.code not in ("transition_in_progress", "transition_recovery_required", "unavailable"):
                raise AssertionError(answer)
            time.sleep(0.1)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


# ---- the server ---------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["as soon as a machine is begun", "after the first answer"])
def test_a_server_killed_during_creates_comes_back_with_each_sandbox_made_once(own_server, moment):
    server = own_server()
    steady = server.create(timeout_ms=3_600_000)
    ticking = server.call("POST", f"/v1/sandboxes/{steady}/exec",
                          {"command": "while :; do date +%s >> /tmp/ticks; sleep 0.2; done", "shell": True, "background": True}).json["pid"]
    keys = [uuid.uuid4().hex for _ in range(6)]
    with ThreadPoolExecutor(len(keys)) as pool:
        asked = [pool.submit(create_with, server, key) for key in keys]
        if moment.startswith("as soon"):
            until("a machine is begun", lambda: len(list(server.data_dir.glob("node/machines/*"))) > 1 or any(a.done() for a in asked), 60, 0.002)
        else:
            until("one is answered", lambda: any(a.done() for a in asked), 60, 0.002)
        server.kill()
        answered = {key: a.result() for key, a in zip(keys, asked)}
    server.start()

    # What ran went on without the server, and is the same machine.
    assert any(p["pid"] == ticking and p["running"] for p in server.call("GET", f"/v1/sandboxes/{steady}/processes").json)
    # Every key gives one sandbox: the one that was answered before, if one was.
    with ThreadPoolExecutor(len(keys)) as pool:
        replayed = dict(zip(keys, pool.map(lambda key: create_with(server, key), keys)))
    assert all(replayed.values()) and len(set(replayed.values())) == len(keys)
    assert {k: v for k, v in answered.items() if v} == {k: replayed[k] for k, v in answered.items() if v}
    settled(server, {steady, *replayed.values()})
    server.destroy_all()
    settled(server, set())
    # A repeated create that finds its key used had begun a machine, which ends after the answer.
    until("no machine's directory is left", lambda: not any(server.data_dir.glob("node/machines/*")), 60)


def test_a_server_killed_during_destroys_finishes_them_when_asked_again(own_server):
    server = own_server()
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: server.create(), range(4)))

        def destroy(one):
            connection = server.http()
            try:
                return connection("DELETE", f"/v1/sandboxes/{one}").status
            except (OSError, http.client.HTTPException):
                return None
            finally:
                connection.close()

        asked = [pool.submit(destroy, one) for one in made[:3]]
        until("one is destroyed", lambda: any(a.done() for a in asked), 60, 0.002)
        server.kill()
        [a.result() for a in asked]
    server.start()
    for one in made[:3]:
        server.destroy(one)
    settled(server, {made[3]})


def test_sigterm_stops_the_server_and_the_machines_run_on(own_server):
    server = own_server()
    kept, expiring, dying = (server.create(timeout_ms=3_600_000) for _ in range(3))
    server.call("POST", f"/v1/sandboxes/{kept}/exec", {"command": "sleep 86455", "shell": True, "background": True})
    before = server.monitors()
    key = server.key
    assert server.call("POST", f"/v1/sandboxes/{expiring}/timeout", {"timeout_ms": 1500}).status == 200
    begin = time.monotonic()
    assert server.stop(timeout=15) == 0
    assert time.monotonic() - begin < 15
    assert all(os.path.exists(f"/proc/{pid}") for pid in before.values())
    os.kill(before[dying], signal.SIGKILL)
    until("its window is over", lambda: time.monotonic() - begin > 2, 10)

    # A machine that dies while nobody looks, and a window that ends meanwhile, are noticed at the next start.
    server.start()
    assert server.key == key
    assert server.monitors()[kept] == before[kept]
    assert server.out(kept, "pgrep -f 'sleep 8645[5]'")
    until("the one whose time was over is gone", lambda: server.status(expiring) == "sandbox_not_found", 60)
    until("the one that died is not shown running", lambda: server.status(dying) == "error", 60)
    server.destroy(dying)
    settled(server, {kept})


def test_a_server_killed_while_it_boots_a_template_leaves_no_machine_behind(own_server, workspace):
    checkpoints = workspace / "own-checkpoints"
    checkpoints.mkdir()
    known = cache() / "checkpoints/acceleration.json"
    if known.exists():  # what was found out about the host once need not be found out again
        shutil.copy(known, checkpoints)
    server = own_server(checkpoints=checkpoints, config={"node": {"shapes": ["1x256"], "spare_machines": 0}}, wait=False)
    until("the template boots", lambda: any("qemu-system" in p for p in host.processes(server.data_dir) | host.processes(checkpoints)), 60)
    server.kill()
    server.start()
    settled(server, {server.create()})
    server.end()
    assert host.processes(server.directory) | host.processes(checkpoints) == set()
    assert not list(checkpoints.glob("making-*"))


# ---- the monitor and the guest --------------------------------------------------------------


def lost(server, one: str, neighbour: str):
    """`one` is shown as lost and can be destroyed; its neighbour did not notice."""
    until("the loss is shown", lambda: server.status(one) == "error", 90)
    answer = server.call("POST", f"/v1/sandboxes/{one}/exec", {"command": "true"})
    assert answer.status in (404, 409) and answer.code in ("sandbox_not_ready", "sandbox_not_found"), answer
    assert server.out(neighbour, "echo alive") == "alive"
    assert server.call("DELETE", f"/v1/sandboxes/{one}").status == 200
    assert server.status(one) == "sandbox_not_found"
    assert one not in server.monitors() and not (server.data_dir / "node/machines" / one).exists()


def test_a_killed_monitor_is_noticed_and_freed(server, temporary):
    one, neighbour = temporary(), temporary()
    os.kill(server.monitors()[one], signal.SIGKILL)
    lost(server, one, neighbour)


@pytest.mark.parametrize("blow", [
    "echo c > /proc/sysrq-trigger",
    # The agent is PID 1, which no signal from inside can kill: its code is overwritten instead.
    "python3 -c \"m = open('/proc/1/mem', 'r+b', 0)\nfor l in open('/proc/1/maps'):\n    if ' r-xp ' in l and '/' in l:\n"
    "        a, b = (int(x, 16) for x in l.split()[0].split('-')); m.seek(a); m.write(bytes([0xcc]) * (b - a)); break\"",
    "echo o > /proc/sysrq-trigger",
    "echo b > /proc/sysrq-trigger",
], ids=["kernel crash", "agent crash", "power off", "reset"])
def test_a_guest_that_dies_is_noticed_and_freed(server, temporary, sandbox, blow):
    one = temporary()
    server.call("POST", f"/v1/sandboxes/{one}/exec", {"command": f"sleep 0.2; {blow}", "shell": True, "background": True})
    lost(server, one, sandbox)


def test_a_command_under_way_when_its_machine_dies_gets_an_answer(server, temporary):
    one = temporary()
    with ThreadPoolExecutor(1) as pool:
        connection = server.http()
        waiting = pool.submit(connection, "POST", f"/v1/sandboxes/{one}/exec", {"command": "echo $$; sleep 86466", "shell": True, "timeout_secs": 300})
        until("it runs", lambda: server.exec(one, "pgrep -f 'sleep 8646[6]'")["exit_code"] == 0, 60)
        os.kill(server.monitors()[one], signal.SIGKILL)
        answer = waiting.result(timeout=90)
        connection.close()
    assert answer.status >= 400 and answer.code in ("exec_failed", "sandbox_not_ready", "sandbox_not_found"), answer


def test_a_destroy_during_a_create_ends_both(server):
    tag = uuid.uuid4().hex
    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(server.http(), "POST", "/v1/sandboxes", {"metadata": {"tag": tag}})
        found = until("it is listed or made", lambda: server.listed(metadata=json.dumps({"tag": tag})), 60, 0.002)[0]["id"]
        assert server.call("DELETE", f"/v1/sandboxes/{found}").status == 200
        made = making.result(timeout=120)
    assert made.status == 201 and made.json["id"] == found or made.status in (404, 409), made
    assert server.status(found) == "sandbox_not_found"
    until("no process is left of it", lambda: found not in server.monitors(), 30)


# ---- room -------------------------------------------------------------------------------------


def test_a_full_disk_refuses_new_sandboxes_and_the_running_ones_go_on(small_disk, own_server):
    server = own_server(data_dir=small_disk / "data", config={"node": {"disk_reserve_mb": 64, "spare_machines": 0}})
    one = server.create(timeout_ms=3_600_000)
    ballast = small_disk / "ballast"
    subprocess.run(["fallocate", "-l", f"{int(free_mib(small_disk) - 40)}M", ballast], check=True)

    answer = server.call("POST", "/v1/sandboxes", {})
    assert (answer.status, answer.code) == (503, "capacity_exceeded") and "disk" in answer.json["error"], answer
    until("health says that no sandbox could be made", lambda: server.call("GET", "/healthz", key=None).status == 503, 30)
    assert server.out(one, "echo alive") == "alive"

    # The guest writes what the host has no room for. It stands still, and loses nothing.
    writing = server.call("POST", f"/v1/sandboxes/{one}/exec",
                          {"command": "dd if=/dev/urandom of=/var/tmp/f bs=1M count=120 conv=fsync && sha256sum /var/tmp/f", "shell": True, "background": True})
    assert writing.status == 200, writing
    until("the host's disk is full", lambda: free_mib(small_disk) < 1, 120)
    ballast.unlink()

    def ended():
        logs = server.call("GET", f"/v1/sandboxes/{one}/processes/{writing.json['pid']}/logs")  # may fail while it stands still
        return logs.status == 200 and logs.json["exit_code"] is not None and logs.json

    logs = until("the write ends once there is room", ended, 180)
    assert logs["exit_code"] == 0, logs
    assert server.out(one, "echo 1 > /proc/sys/vm/drop_caches; sha256sum /var/tmp/f", timeout_secs=110) in logs["stdout"]
    until("health is good again", lambda: server.call("GET", "/healthz", key=None).status == 200, 60)
    another = server.create()
    assert server.out(another, "echo alive") == "alive"


def test_no_memory_for_another_machine_refuses_it_and_a_destroy_makes_room(own_server):
    # Room is counted as a machine's memory and 64 MiB: this is enough for two of the smallest.
    host_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 20)
    server = own_server(config={"node": {"memory_overcommit": 800 / host_mib, "spare_machines": 0}})
    first, second = server.create(), server.create()
    answer = server.call("POST", "/v1/sandboxes", {})
    assert (answer.status, answer.code) == (503, "capacity_exceeded") and "memory" in answer.json["error"], answer
    assert answer.json["retryable"] is True
    settled(server, {first, second})
    server.destroy(first)
    third = server.create()
    settled(server, {second, third})


# ---- neighbours -------------------------------------------------------------------------------


def test_two_servers_on_one_machine_do_not_disturb_each_other(server, own_server):
    other = own_server()
    mine, theirs = server.create(timeout_ms=3_600_000), other.create(timeout_ms=3_600_000)
    try:
        assert theirs not in {s["id"] for s in server.listed()} and mine not in {s["id"] for s in other.listed()}
        assert server.out(mine, "hostname") != other.out(theirs, "hostname")
        other.kill()
        assert server.out(mine, "echo alive") == "alive"
        other.start()
        settled(other, {theirs})
        other.end()
        assert host.processes(other.directory) == set()
        assert server.out(mine, "echo alive") == "alive" and server.call("GET", "/healthz", key=None).status == 200
        server.destroy(server.create())
    finally:
        server.destroy(mine)
