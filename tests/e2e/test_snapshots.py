"""Snapshots: a running sandbox as a value that is kept, and from which any number of others begin."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from nullspace import ConflictError, NotFoundError, Sandbox, Snapshot

import node_disk
from appliance import until
from guest_programs import clock_is_right, count, goes_on, start_counter

pytestmark = pytest.mark.usefixtures("as_user")


@pytest.fixture(scope="module")
def origin(server, as_user):
    """A sandbox with a counter and a file, and its snapshot."""
    sandbox = Sandbox.create(vcpus=1, memory_mb=256, timeout=1800, envs={"KEPT": "yes"}, metadata={"suite": "snapshots"}, cwd="/srv")
    start_counter(server, sandbox.id)
    sandbox.files.write("/srv/note", "of the origin")
    counted = count(server, sandbox.id)
    snapshot = sandbox.create_snapshot()
    yield sandbox, snapshot, counted
    for one in server.snapshots(sandbox_id=sandbox.id):
        server.call("DELETE", f"/v1/snapshots/{one['id']}")
    server.destroy(sandbox.id)


def test_a_snapshot_leaves_its_sandbox_running(server, origin):
    sandbox, snapshot, counted = origin
    assert snapshot.id.startswith("snap_") and snapshot.sandbox_id == sandbox.id and snapshot.size_bytes > 0
    assert snapshot.metadata == {"suite": "snapshots"}
    assert sandbox.is_running() and server.done(200, "GET", f"/v1/sandboxes/{sandbox.id}")["snapshot_id"] is None
    goes_on(server, sandbox.id, counted)


def test_several_sandboxes_begin_from_one_snapshot_and_go_their_own_ways(server, origin):
    sandbox, snapshot, counted = origin
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda n: Sandbox.create(snapshot_id=snapshot.id, timeout=600, metadata={"n": n}), range(3)))
    try:
        assert len({s.id for s in made} | {sandbox.id}) == 4
        for n, one in enumerate(made):
            info = one.get_info()
            assert (info.config.vcpus, info.config.memory_mb, info.template, info.metadata, info.cwd) == (1, 256, "base", {"n": n}, "/srv")
            clock_is_right(server, one.id)
            goes_on(server, one.id, counted)
            assert one.commands.run("echo $KEPT; cat note", shell=True).stdout == "yes\nof the origin"
            one.files.write("/srv/note", f"of child {n}")
        assert [one.files.read("/srv/note") for one in made] == [f"of child {n}" for n in range(3)]
        assert sandbox.files.read("/srv/note") == "of the origin"
        tree = server.done(200, "GET", f"/v1/sandboxes/{made[0].id}/tree")
        assert tree["root_id"] == sandbox.id
        assert {i["id"]: (i["parent_id"], i["snapshot_id"]) for i in tree["items"] if i["depth"] == 1 and i["status"] == "running"} == {
            one.id: (sandbox.id, snapshot.id) for one in made}
    finally:
        for one in made:
            one.kill()


def test_a_snapshot_outlives_its_sandbox_and_a_sandbox_its_snapshot(server):
    sandbox = Sandbox.create(vcpus=1, memory_mb=256)
    sandbox.files.write("/workspace/note", "kept")
    snapshot = sandbox.create_snapshot()
    sandbox.kill()
    assert Snapshot.get(snapshot.id).sandbox_id == sandbox.id
    with Sandbox.create(snapshot_id=snapshot.id) as child:
        Snapshot.delete(snapshot.id)
        with pytest.raises(NotFoundError) as refused:
            Sandbox.create(snapshot_id=snapshot.id)
        assert refused.value.code == "snapshot_not_found"
        # The child stands on the layer that the snapshot froze, and reads through it still.
        assert child.commands.run("echo 3 > /proc/sys/vm/drop_caches; cat /workspace/note", shell=True).stdout == "kept"
        child.hibernate()
        assert Sandbox.connect(child.id).files.read("/workspace/note") == "kept"


def test_snapshots_are_listed_by_sandbox_and_metadata_and_deleted_once():
    tag = uuid.uuid4().hex
    with Sandbox.create(vcpus=1, memory_mb=256, metadata={"tag": tag, "n": 1}) as sandbox:
        made = [sandbox.create_snapshot() for _ in range(2)]
        assert [s.id for s in Snapshot.list(sandbox_id=sandbox.id)] == [s.id for s in reversed(made)]  # newest first
        assert {s.id for s in Snapshot.list(metadata={"tag": tag})} == {s.id for s in made}
        assert {s.id for s in Snapshot.list(metadata={"tag": tag, "n": 1})} == {s.id for s in made}
        assert Snapshot.list(metadata={"tag": tag, "n": 2}) == [] == Snapshot.list(sandbox_id="sb_" + "0" * 32)
        Snapshot.delete(made[0].id)
        for ask in (Snapshot.get, Snapshot.delete):
            with pytest.raises(NotFoundError) as refused:
                ask(made[0].id)
            assert refused.value.code == "snapshot_not_found"
        assert [s.id for s in Snapshot.list(metadata={"tag": tag})] == [made[1].id]
    Snapshot.delete(made[1].id)


def test_the_snapshot_that_a_paused_sandbox_needs_cannot_be_deleted(server):
    with Sandbox.create(vcpus=1, memory_mb=256) as sandbox:
        snapshot = sandbox.hibernate()
        with pytest.raises(ConflictError) as refused:
            Snapshot.delete(snapshot.id)
        assert refused.value.code == "snapshot_in_use" and sandbox.id in str(refused.value)
        # Others may begin from it meanwhile; and once its sandbox runs it may go.
        with Sandbox.create(snapshot_id=snapshot.id) as other:
            assert other.id != sandbox.id and other.commands.run("echo alive", shell=True).stdout == "alive\n"
        assert server.status(sandbox.id) == "paused"
        Sandbox.resume(snapshot.id)
        Snapshot.delete(snapshot.id)
        assert sandbox.commands.run("echo alive", shell=True).stdout == "alive\n"


def test_a_snapshot_of_ones_own_is_no_way_to_resume(server, origin):
    sandbox, snapshot, _ = origin
    answer = server.call("POST", f"/v1/sandboxes/{snapshot.id}/resume")
    assert (answer.status, answer.code) == (400, "invalid_request") and "snapshot_id" in str(answer.json), answer
    assert sandbox.is_running()


def test_one_idempotency_key_makes_one_snapshot(server, origin):
    sandbox, _, _ = origin
    key, before = uuid.uuid4().hex, len(server.snapshots(sandbox_id=sandbox.id))

    def take(_):
        connection = server.http()
        answers = lambda: connection("POST", f"/v1/sandboxes/{sandbox.id}/snapshots", headers={"Idempotency-Key": key})
        try:
            return until("it is taken", lambda: (a := answers()).status == 201 and a.json["id"], 60)
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(take, range(4)))) == 1
    assert len(server.snapshots(sandbox_id=sandbox.id)) == before + 1


def test_many_snapshots_of_one_sandbox_are_merged_behind_its_back(server):
    """A chain of layers does not grow for ever, and nothing in it is lost."""
    with Sandbox.create(vcpus=1, memory_mb=256) as sandbox:
        made = []
        for n in range(12):
            sandbox.files.write(f"/workspace/{n}", f"{n}" * 1000)
            made.append(sandbox.create_snapshot())
        until("the layers are merged", lambda: len(node_disk.machines(server)[sandbox.id]["layers"]) < len(made), 120)
        read = "echo 3 > /proc/sys/vm/drop_caches; for n in $(seq 0 11); do sha256sum < /workspace/$n; done"
        inside = sandbox.commands.run(read, shell=True, timeout=60).stdout
        with Sandbox.create(snapshot_id=made[-1].id) as child:
            assert child.commands.run(read, shell=True, timeout=60).stdout == inside and len(set(inside.split("\n"))) == 13
        for snapshot in made:
            Snapshot.delete(snapshot.id)
        assert sandbox.commands.run(read, shell=True, timeout=60).stdout == inside
