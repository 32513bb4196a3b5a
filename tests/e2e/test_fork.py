"""Forks: live children of a running sandbox, each a machine of its own; their tree, and what differs between them."""

import os
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from nullspace import AsyncSandbox, Sandbox

import node_disk
from appliance import until
from guest_programs import FILLER, SIPPER, clock_is_right, count, draw, goes_on, held, holds, logs, start_counter, start_drawer, start_holder, told

pytestmark = pytest.mark.usefixtures("as_user")
HOOKS = "/etc/nullspace/after-restore.d"


@pytest.fixture
def parent(server):
    """A sandbox with a counter; it ends with all that was forked from it."""
    sandbox = Sandbox.create(vcpus=1, memory_mb=256, timeout=1800, envs={"KEPT": "yes"}, metadata={"job": "fork"}, cwd="/srv")
    start_counter(server, sandbox.id)
    yield sandbox
    for one in server.done(200, "GET", f"/v1/sandboxes/{sandbox.id}/tree")["items"]:
        server.destroy(one["id"])


def test_a_fork_is_a_live_child_and_the_parent_goes_on(server, parent):
    parent.files.write("/srv/note", "before the fork")
    counted = count(server, parent.id)
    child = parent.fork()
    assert child.id.startswith("sb_") and child.id != parent.id
    ours, theirs = child.get_info(), parent.get_info()
    assert ours.status.value == theirs.status.value == "running" and ours.config == theirs.config
    assert (ours.metadata, ours.cwd, ours.timeout_ms, ours.timeout_action) == (theirs.metadata, theirs.cwd, theirs.timeout_ms, theirs.timeout_action)
    assert ours.timeout_at > theirs.timeout_at  # its window began with it
    assert child.commands.run("echo $KEPT; cat note", shell=True).stdout == "yes\nbefore the fork"
    for one in (child, parent):
        goes_on(server, one.id, counted)
    child.files.write("/srv/note", "of the child")
    parent.files.write("/srv/other", "of the parent")
    assert parent.files.read("/srv/note") == "before the fork" and not child.files.exists("/srv/other")
    parent.kill()
    assert child.commands.run("cat note", shell=True).stdout == "of the child"


def test_forks_of_forks_are_a_tree(server, parent):
    chain = [parent]
    for n in range(3):
        chain[-1].files.write(f"/srv/{n}", str(n))
        chain.append(chain[-1].fork())
    assert sorted(f.name for f in chain[-1].files.list("/srv")) == ["0", "1", "2"]
    chain[1].kill()
    tree = server.done(200, "GET", f"/v1/sandboxes/{chain[2].id}/tree")
    assert tree["root_id"] == parent.id and not tree["truncated"]
    assert [(i["id"], i["parent_id"], i["depth"], i["status"]) for i in tree["items"]] == [
        (one.id, chain[n - 1].id if n else None, n, "destroyed" if n == 1 else "running") for n, one in enumerate(chain)]
    assert server.done(200, "GET", f"/v1/sandboxes/{parent.id}/tree") == tree


def test_many_children_begin_at_one_instant_in_one_call(server, parent):
    holder = start_holder(server, parent.id, 8)
    counted = count(server, parent.id)
    children = server.fork(parent.id, 5)
    assert len(set(children)) == 5 and children == sorted(children)
    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(lambda one: held(server, one, holder, "forked"), [parent.id, *children])) == {holds(8)}
        list(pool.map(lambda one: goes_on(server, one, counted), children))
    told = [e for e in server.events(parent.id, operation="fork")]
    assert {(e["status"], e["source_sandbox_id"], e["target_sandbox_id"], e["sandbox_id"]) for e in told} == {
        ("succeeded", parent.id, child, child) for child in children}
    bare = server.done(201, "POST", f"/v1/sandboxes/{parent.id}/fork")
    assert bare["status"] == "running" and bare["parent_id"] == parent.id


def test_one_idempotency_key_forks_once(server, parent):
    key = {"Idempotency-Key": uuid.uuid4().hex}

    def ask(_):
        connection = server.http()
        answers = lambda: connection("POST", f"/v1/sandboxes/{parent.id}/fork", {"count": 2}, headers=key)
        try:
            return until("it is done", lambda: (a := answers()).status == 201 and tuple(i["id"] for i in a.json["items"]), 60)
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(ask, range(4)))) == 1
    assert len(server.done(200, "GET", f"/v1/sandboxes/{parent.id}/tree")["items"]) == 3
    refused = server.call("POST", f"/v1/sandboxes/{parent.id}/fork", {"count": 3}, headers=key)
    assert (refused.status, refused.code) == (409, "conflict")


@pytest.mark.anyio
async def test_the_asynchronous_client_forks_too(server, parent):
    async with await AsyncSandbox.connect(parent.id) as mine:
        async with await mine.fork() as child:
            assert (await child.commands.run("echo $KEPT", shell=True)).stdout == "yes\n"


def test_a_fork_for_which_there_is_no_room_leaves_nothing(own_server):
    host_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 20)
    # Room is counted as a machine's memory and 64 MiB: this is enough for two of the smallest.
    server = own_server(config={"node": {"memory_overcommit": 800 / host_mib, "spare_machines": 0}})
    one = server.create()
    answer = server.call("POST", f"/v1/sandboxes/{one}/fork", {"count": 2})
    assert (answer.status, answer.code) == (503, "capacity_exceeded") and answer.json["retryable"] is True, answer
    until("nothing is left of it", lambda: not node_disk.amiss(server), 30)
    assert [s["id"] for s in server.listed()] == [one] and server.told(one)[-1] == "fork/failed"
    # Half of the room was there, and is there again.
    [child] = server.fork(one)
    assert server.out(child, "echo alive") == server.out(one, "echo alive") == "alive"


# ---- a child is a machine of its own -----------------------------------------------------------


def test_parent_and_children_draw_different_random_numbers(server, parent):
    """From the kernel, by a process that was captured in the middle of a read, and by new ones."""
    start_drawer(server, parent.id)
    before = draw(server, parent.id)
    relatives = [parent.id, *server.fork(parent.id, 2)]
    drawn = [number for one in relatives for number in draw(server, one)]
    assert len(set(drawn)) == 2 * len(relatives) and not set(drawn) & set(before)
    fresh = [server.out(one, "python3", "-c", "import os, uuid; print(os.urandom(16).hex(), uuid.uuid4(), os.getrandom(8).hex())") for one in relatives]
    assert len({word for line in fresh for word in line.split()}) == 3 * len(relatives)


@pytest.mark.parametrize("program", [FILLER, SIPPER], ids=["by_one_read_of_64_mib", "over_and_over"])
def test_no_program_draws_what_another_machine_draws_too(server, program):
    """Time in a guest goes on from the capture, so what was told in both at the same nanosecond was told before it; everything
    else was drawn by each for itself, from the first moment on."""
    one = server.create(timeout_ms=1_800_000)
    pid = server.background(one, "python3", "-c", program)
    until("it draws", lambda: len(told(server, one, pid)) > 1, 60)
    family = [one, *server.fork(one, 2)]
    drawn = []
    for each in family:
        before = len(told(server, each, pid))
        # One that was under way at the capture, and one more.
        drawn.append(until("it goes on", lambda: len(now := told(server, each, pid)) > before + 2 and now, 60))
    for ours, theirs in ((drawn[0], drawn[1]), (drawn[0], drawn[2]), (drawn[1], drawn[2])):
        common = ours.keys() & theirs.keys()
        assert common and all(ours[draw] == theirs[draw] for draw in common)
        assert len(common) < min(len(ours), len(theirs))
    for each in family:
        server.destroy(each)


@pytest.mark.parametrize("what", [
    "hostname", "cat /etc/hostname", "cat /etc/machine-id", "cat /proc/sys/kernel/random/boot_id", "cat /run/nullspace/ssh_host_ed25519_key.pub",
    "getent hosts $(hostname) > /dev/null && hostname",
])
def test_a_child_has_an_identity_of_its_own(server, family, what):
    answers = [server.out(one, what) for one in family]
    assert all(answers) and len(set(answers)) == len(family)


@pytest.fixture(scope="module")
def family(server):
    """A sandbox, its child, and the child's child."""
    one = server.create(timeout_ms=1_800_000)
    [child] = server.fork(one)
    [grandchild] = server.fork(child)
    yield one, child, grandchild
    for each in (one, child, grandchild):
        server.destroy(each)


def test_no_child_holds_a_token_of_its_parent(server, family):
    records = node_disk.machines(server)
    tokens = [records[one]["token"] for one in family]
    assert len(set(tokens)) == len(family)
    # Nor are they, or the parent's name, where the guest's programs could read them.
    child_name = server.out(family[1], "hostname")
    assert family[1][-12:] in child_name and family[0][-12:] not in server.out(family[1], "cat /etc/hosts /etc/hostname")
    assert not any(token in server.out(family[1], "cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' ' '; grep -rs . /run/nullspace") for token in tokens)


def test_the_clock_of_a_child_is_right_at_once(server, parent):
    child = parent.fork()
    clock_is_right(server, child.id)
    clock_is_right(server, parent.id)


def test_hooks_have_run_with_the_childs_identity_before_it_is_handed_out(server, parent):
    hook = "#!/bin/sh\\nsleep 0.3; echo $NULLSPACE_SANDBOX_ID $NULLSPACE_REASON $(hostname) $KEPT $(id -un) >> /run/hook-ran\\n"
    parent.commands.run(f"mkdir -p {HOOKS} && printf '{hook}' > {HOOKS}/10-note && chmod 755 {HOOKS}/10-note", shell=True)
    parent.commands.run(f"printf '{hook}' > {HOOKS}/20-not-executable; printf '{hook}' > '{HOOKS}/30 no name'; chmod 755 '{HOOKS}/30 no name'", shell=True)
    child = parent.fork()
    ran = child.commands.run("cat /run/hook-ran", shell=True).stdout
    assert ran == f"{child.id} restore {child.commands.run('hostname').stdout.strip()} yes root\n"
    assert not parent.files.exists("/run/hook-ran")
    parent.hibernate()
    resumed = Sandbox.connect(parent.id)
    assert resumed.files.read("/run/hook-ran").split()[:2] == [parent.id, "restore"]


def test_a_hook_that_fails_or_hangs_does_not_lose_the_child(server, parent):
    parent.commands.run(f"mkdir -p {HOOKS}; cd {HOOKS}; printf '#!/bin/sh\\necho no; exit 3\\n' > 10-fails; printf '#!/bin/sh\\nsleep 86488\\n' > 20-hangs;"
                        f" printf '#!/bin/sh\\ntouch /run/last-ran\\n' > 30-last; chmod 755 *", shell=True)
    child = parent.fork(request_timeout=120)
    assert child.commands.run("echo alive", shell=True).stdout == "alive\n" and child.files.exists("/run/last-ran")
    assert child.commands.run("pgrep -f 'sleep 8648[8]'", shell=True).exit_code == 1


def test_connections_from_outside_do_not_reach_into_a_child(server, parent):
    """A follower and a terminal's viewer of the parent go on with the parent, and are none of the child's."""
    handle = parent.commands.run("read line; echo got $line", shell=True, background=True, on_stdout=lambda text: None)
    session = parent.pty.create_session(cols=80, rows=24)
    child = parent.fork()
    parent.commands.send_stdin(handle.pid, "typed\n")
    assert handle.wait(timeout=60).stdout == "got typed\n"
    assert any(p.pid == handle.pid and p.running for p in child.commands.list()) and logs(server, child.id, handle.pid) == ""
    child.commands.send_stdin(handle.pid, "to the child\n")
    until("the child's has its own", lambda: logs(server, child.id, handle.pid) == "got to the child\n", 30)
    assert session.session_id in {s.session_id for s in child.pty.list_sessions()}
    seen = []
    again = child.pty.connect(session_id=session.session_id)
    again.send_input("echo it is $((40+2)); exit 5\n")
    assert again.wait(on_data=seen.append, timeout=60).exit_code == 5 and b"it is 42" in b"".join(seen)
    session.send_input("exit 6\n")
    assert session.wait(on_data=lambda data: None, timeout=60).exit_code == 6


# ---- what differs ------------------------------------------------------------------------------


def differences(server, one: str, against: str, **query) -> dict[str, str]:
    answer = server.done(200, "GET", f"/v1/sandboxes/{one}/diff", query={"against": against} | query)
    assert (answer["sandbox_id"], answer["against"]) == (one, against)
    assert [i["path"] for i in answer["items"]] == sorted((i["path"] for i in answer["items"]), key=str.encode)
    return {i["path"]: i["change"] for i in answer["items"] if i["path"].startswith("/srv/")}


def test_what_differs_between_relatives_is_read_from_their_disks_without_waking_them(server, family_of_files):
    parent, child, snapshot = family_of_files
    wanted = {"/srv/new": "added", "/srv/dir": "added", "/srv/dir/deep": "added", "/srv/gone": "removed", "/srv/changed": "modified",
              "/srv/mode": "modified", "/srv/link": "modified"}
    assert differences(server, child, parent) == wanted
    turned = {"added": "removed", "removed": "added", "modified": "modified"}
    assert differences(server, parent, child) == {path: turned[how] for path, how in wanted.items()}
    assert differences(server, child, snapshot) == wanted and differences(server, parent, snapshot) == {}
    for one in (parent, child):
        server.hibernate(one)
    assert differences(server, child, parent) == wanted
    assert server.status(parent) == server.status(child) == "paused"
    cut = server.done(200, "GET", f"/v1/sandboxes/{child}/diff", query={"against": parent, "limit": 2})
    assert len(cut["items"]) == 2 and cut["truncated"]


@pytest.fixture
def family_of_files(server):
    parent = server.create(timeout_ms=1_800_000)
    server.out(parent, "cd /srv; echo 1 > same; echo 1 > gone; echo 1 > changed; echo 1 > mode; ln -s same link")
    snapshot = server.snapshot(parent)
    [child] = server.fork(parent)
    # Of the same length and time as before: only the content tells.
    server.out(child, "cd /srv; echo 2 > new; mkdir dir; echo 2 > dir/deep; rm gone; touch -r changed /tmp/when; echo 2 > changed; touch -r /tmp/when changed;"
                      " chmod 600 mode; ln -sfn gone link")
    yield parent, child, snapshot
    for one in (parent, child):
        server.destroy(one)
    server.call("DELETE", f"/v1/snapshots/{snapshot}")


def test_only_relatives_can_be_compared(server, sandbox, temporary):
    stranger = temporary()
    path = f"/v1/sandboxes/{sandbox}/diff"
    refused = server.call("GET", path, query={"against": stranger})
    assert (refused.status, refused.code) == (400, "invalid_request") and stranger in refused.json["error"], refused
    for query, word in (({}, "against"), ({"against": "nonsense"}, "against"), ({"against": sandbox, "limit": 0}, "limit")):
        refused = server.call("GET", path, query=query)
        assert (refused.status, refused.code) == (400, "invalid_request") and word in refused.json["error"], refused
    assert server.call("GET", path, query={"against": "sb_" + "0" * 32}).code == "sandbox_not_found"
