"""Sandboxes as a user of the public client has them: create, look, list, keep, let expire, destroy."""

import uuid
from datetime import datetime, timedelta, timezone

import pytest
from nullspace import NotFoundError, Sandbox, SandboxQuery

from appliance import until

pytestmark = pytest.mark.usefixtures("as_user")


def is_gone(sandbox_id: str) -> bool:
    try:
        Sandbox.get_info_by_id(sandbox_id)
    except NotFoundError as error:
        return error.code == "sandbox_not_found"
    return False


def test_a_sandbox_has_all_that_was_asked_for():
    metadata = {"job": "build-17", "nested": {"list": [1, None, "ü"]}}
    with Sandbox.create(template="base", vcpus=2, memory_mb=512, disk_mb=4096, timeout=600, envs={"GREETING": "good morning"},
                        metadata=metadata, cwd="/home/user", internet_access=False, timeout_action="destroy") as sandbox:
        assert sandbox.id.startswith("sb_")
        info = sandbox.get_info()
        assert info.status.value == "running" and sandbox.is_running()
        assert (info.config.vcpus, info.config.memory_mb) == (2, 512)
        assert info.template == "base" and info.metadata == metadata and info.cwd == "/home/user"
        assert info.timeout_ms == 600_000 and info.timeout_action.value == "destroy"
        assert info.expires_at == info.timeout_at
        now = datetime.now(timezone.utc)
        assert now < info.timeout_at <= now + timedelta(seconds=600)
        assert info.created_at <= info.started_at <= now
        ran = sandbox.commands.run('echo "$GREETING from $PWD"', shell=True)
        assert (ran.exit_code, ran.stdout, ran.stderr) == (0, "good morning from /home/user\n", "")
        assert sandbox.get_info(fields=["id", "status"]) == {"id": sandbox.id, "status": "running"}
    assert is_gone(sandbox.id)


def test_the_list_shows_what_runs_by_state_template_and_metadata_in_pages():
    tag = uuid.uuid4().hex
    made = [Sandbox.create(vcpus=1, memory_mb=256, metadata={"tag": tag, "n": n}) for n in range(3)]
    try:
        ids = {s.id for s in made}
        assert ids <= {info.id for info in Sandbox.list()}
        assert {info.id for info in Sandbox.list(query=SandboxQuery(metadata={"tag": tag}))} == ids
        assert [info.id for info in Sandbox.list(query=SandboxQuery(metadata={"tag": tag, "n": 1}))] == [made[1].id]
        assert ids <= {info.id for info in Sandbox.list(state="running")}
        assert not ids & {info.id for info in Sandbox.list(state="paused")}
        assert ids <= {info.id for info in Sandbox.list(query=SandboxQuery(template="base"))}
        assert list(Sandbox.list(query=SandboxQuery(template="no-such"))) == []

        first = Sandbox.list(query=SandboxQuery(metadata={"tag": tag}), limit=2)
        assert len(first) == 2 and first.has_next and first.next_token
        assert {info.id for info in first} == ids  # iterating goes through all pages
        assert Sandbox.list(query=SandboxQuery(metadata={"tag": tag}), fields=["id"], limit=10) == [
            {"id": s.id} for s in reversed(made)  # newest first
        ]
        made.pop(0).kill()
        assert {info.id for info in Sandbox.list(query=SandboxQuery(metadata={"tag": tag}))} == {s.id for s in made}
        assert {info.id for info in Sandbox.list(state="destroyed", query=SandboxQuery(metadata={"tag": tag}))} == ids - {s.id for s in made}
    finally:
        for sandbox in made:
            sandbox.kill()


def test_a_sandbox_expires_when_its_time_is_over_and_not_before():
    sandbox = Sandbox.create(vcpus=1, memory_mb=256, timeout=3600)
    before = sandbox.get_info().timeout_at
    sandbox.set_timeout(7200)
    kept = sandbox.get_info()
    assert kept.timeout_at > before and kept.timeout_ms == 7_200_000
    sandbox.set_timeout(1)
    until("the sandbox expires", lambda: is_gone(sandbox.id), 60)
    with pytest.raises(NotFoundError) as refused:
        sandbox.commands.run("true")
    assert refused.value.code == "sandbox_not_found"
    assert sandbox.id not in {info.id for info in Sandbox.list()}


def test_connect_finds_a_running_sandbox_and_extends_it():
    with Sandbox.create(vcpus=1, memory_mb=256, envs={"KEPT": "yes"}) as sandbox:
        sandbox.files.write("/workspace/note.txt", "left by the first")
        again = Sandbox.connect(sandbox.id, timeout=900)
        assert again.id == sandbox.id and again.files.read("/workspace/note.txt") == "left by the first"
        assert again.commands.run("echo $KEPT", shell=True).stdout == "yes\n"
        assert again.get_info().timeout_ms == 900_000
        again.close()


def test_kill_is_final_and_by_id_too():
    sandbox = Sandbox.create(vcpus=1, memory_mb=256)
    Sandbox.kill_by_id(sandbox.id)
    assert is_gone(sandbox.id)
    with pytest.raises(NotFoundError):
        Sandbox.connect(sandbox.id)


def test_run_once_makes_runs_and_destroys():
    before = {info.id for info in Sandbox.list()}
    result = Sandbox.run_once("sh", ["-c", "echo $WHO; exit 3"], envs={"WHO": "once"})
    assert (result.exit_code, result.stdout) == (3, "once\n")
    assert {info.id for info in Sandbox.list()} <= before


def test_metrics_say_what_the_machine_has_and_uses(box):
    newest = until("metrics are there", box.get_metrics, 60)[-1]
    assert newest.cpu_count == 2 and newest.cpu_percent >= 0
    assert 384 << 20 < newest.mem_total_bytes <= 512 << 20 and 0 < newest.mem_used_bytes < newest.mem_total_bytes
    assert newest.disk_total_bytes > 1 << 30 and 0 < newest.disk_used_bytes < newest.disk_total_bytes
    stamp = newest.timestamp if isinstance(newest.timestamp, datetime) else datetime.fromisoformat(newest.timestamp.replace("Z", "+00:00"))
    assert abs(datetime.now(timezone.utc) - stamp) < timedelta(minutes=5)
