"""The same journeys through the public client's asynchronous half."""

import asyncio
import io

import pytest
from nullspace import AsyncSandbox, NotFoundError, SandboxError, SandboxQuery

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("as_user")]


async def test_a_sandbox_lives_its_whole_life_asynchronously():
    async with await AsyncSandbox.create(vcpus=1, memory_mb=256, timeout=600, envs={"A": "1"}, metadata={"async": True}) as sandbox:
        info = await sandbox.get_info()
        assert info.status.value == "running" and info.metadata == {"async": True} and await sandbox.is_running()
        ran = await sandbox.commands.run("echo $A; echo bad >&2; exit 5", shell=True)
        assert (ran.exit_code, ran.stdout, ran.stderr) == (5, "1\n", "bad\n")
        assert (await sandbox.commands.run("python3", ["-c", "print('argv')"])).stdout == "argv\n"

        handle = await sandbox.commands.run("read x; echo $x", shell=True, background=True)
        assert any(p.pid == handle.pid and p.running for p in await sandbox.commands.list())
        await sandbox.commands.send_stdin(handle.pid, "typed\n")
        result = await handle.wait(timeout=60)
        assert (result.exit_code, result.stdout) == (0, "typed\n")
        killed = await sandbox.commands.run("sleep 86400", shell=True, background=True)
        await killed.kill()
        assert (await killed.wait(timeout=60)).exit_code == 137

        await sandbox.files.write("/workspace/a.txt", "text")
        await sandbox.files.write("/workspace/b.bin", b"\0\1\2")
        await sandbox.files.write("/workspace/c.bin", io.BytesIO(b"x" * 100_000))
        assert await sandbox.files.read("/workspace/a.txt") == "text"
        assert await sandbox.files.read("/workspace/b.bin", format="bytes") == b"\0\1\2"
        assert sum([len(chunk) async for chunk in await sandbox.files.read("/workspace/c.bin", format="stream")]) == 100_000
        assert {f.name for f in await sandbox.files.list("/workspace")} == {"a.txt", "b.bin", "c.bin"}
        assert await sandbox.files.exists("/workspace/a.txt") and not await sandbox.files.exists("/workspace/z")
        assert (await sandbox.files.info("/workspace/a.txt")).size == 4
        await sandbox.files.make_dir("/workspace/d/e")
        await sandbox.files.rename("/workspace/a.txt", "/workspace/d/e/a.txt")
        await sandbox.files.remove("/workspace/d")
        assert not await sandbox.files.exists("/workspace/d/e/a.txt")

        await sandbox.set_timeout(1200)
        assert (await sandbox.get_info()).timeout_ms == 1_200_000
        found = await AsyncSandbox.list(query=SandboxQuery(metadata={"async": True}), limit=1)
        assert [s.id for s in found.items] == [sandbox.id]
        await found.close()
        again = await AsyncSandbox.connect(sandbox.id)
        assert again.id == sandbox.id
        await again.close()
        await sandbox.get_metrics()
    with pytest.raises(NotFoundError):
        await AsyncSandbox.get_info_by_id(sandbox.id)


async def test_several_sandboxes_are_made_and_used_at_once():
    made = await asyncio.gather(*(AsyncSandbox.create(vcpus=1, memory_mb=256, envs={"N": str(n)}) for n in range(4)))
    try:
        said = await asyncio.gather(*(s.commands.run("echo $N", shell=True) for s in made))
        assert [r.stdout for r in said] == [f"{n}\n" for n in range(4)]
    finally:
        await asyncio.gather(*(s.kill() for s in made))


async def test_many_commands_run_at_once_in_one_sandbox():
    async with await AsyncSandbox.create(vcpus=1, memory_mb=256) as sandbox:
        results = await asyncio.gather(*(sandbox.commands.run(f"echo {n}", shell=True) for n in range(10)))
        assert [r.stdout for r in results] == [f"{n}\n" for n in range(10)]


async def test_errors_come_as_the_same_classes():
    async with await AsyncSandbox.create(vcpus=1, memory_mb=256) as sandbox:
        with pytest.raises(NotFoundError) as refused:
            await sandbox.files.read("/workspace/none")
        assert refused.value.code == "file_not_found"
        with pytest.raises(SandboxError) as refused:
            await sandbox.commands.run("sleep 86400", shell=True, timeout=1)
        assert refused.value.code == "exec_timeout"


async def test_run_once_works_asynchronously():
    assert (await AsyncSandbox.run_once("echo", ["once"])).stdout == "once\n"


async def test_streams_terminals_transfers_and_watches_work_asynchronously(tmp_path):
    async with await AsyncSandbox.create(vcpus=1, memory_mb=256, timeout=900) as sandbox:
        out, err = [], []
        ran = await sandbox.commands.run("echo out; echo err >&2; exit 2", shell=True, on_stdout=out.append, on_stderr=err.append)
        assert (ran.exit_code, ran.stdout, "".join(out), "".join(err)) == (2, "out\n", "out\n", "err\n")
        handle = await sandbox.commands.run("echo begun; read x; echo got $x", shell=True, background=True, on_stdout=out.append)
        again = await sandbox.commands.connect(handle.pid)
        await sandbox.commands.send_stdin(handle.pid, "typed\n")
        for one in (handle, again):
            assert (await one.wait(timeout=60)).stdout == "begun\ngot typed\n"

        session = await sandbox.pty.create_session(cols=80, rows=24)
        seen = []
        await session.send_input("echo in-$((40+2)); exit 5\n")
        result = await session.wait(on_data=seen.append)
        assert result.exit_code == 5 and b"in-42" in b"".join(seen)

        await sandbox.files.write_files([("/workspace/w/a.txt", "a needle"), ("/workspace/w/b.txt", b"bytes")])
        assert [m.file for m in await sandbox.files.find_files("/workspace/w", "needle")] == ["/workspace/w/a.txt"]
        assert await sandbox.files.search_files("/workspace/w", "*.txt") == ["/workspace/w/a.txt", "/workspace/w/b.txt"]
        assert await sandbox.files.replace_in_files(["/workspace/w/a.txt"], "needle", "thread") == 1
        events, created = [], asyncio.Event()

        def take(event):
            events.append((event.type, event.name))
            if event.type == "create":
                created.set()

        async with await sandbox.files.watch_dir("/workspace/w", take):
            await sandbox.files.write("/workspace/w/new.txt", "1")
            await asyncio.wait_for(created.wait(), 30)
        assert ("create", "new.txt") in events

        source = tmp_path / "up.bin"
        source.write_bytes(bytes(range(256)) * 80_000)
        result = await sandbox.files.upload_file(source, "/workspace/up.bin", resumable=True, checksum="sha256")
        assert result.bytes_uploaded == source.stat().st_size and (await sandbox.files.info("/workspace/up.bin")).size == source.stat().st_size
        (tmp_path / "dir/sub").mkdir(parents=True)
        (tmp_path / "dir/sub/f.txt").write_text("in a directory")
        await sandbox.files.upload_dir(tmp_path / "dir", "/workspace/dir")
        assert await sandbox.files.read("/workspace/dir/sub/f.txt") == "in a directory"
