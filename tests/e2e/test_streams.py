"""Commands that are followed while they run: callbacks, handles, reattachment; many at once."""

import concurrent.futures
import hashlib
import threading

import pytest
from nullspace import Sandbox

from appliance import until


def test_callbacks_see_both_streams_in_order_and_the_result_has_all_of_it(box):
    seen = []
    result = box.commands.run("for n in 1 2 3; do echo out$n; echo err$n >&2; sleep 0.05; done; exit 3", shell=True,
                              on_stdout=lambda text: seen.append(("out", text)), on_stderr=lambda text: seen.append(("err", text)))
    assert (result.exit_code, result.stdout, result.stderr) == (3, "out1\nout2\nout3\n", "err1\nerr2\nerr3\n")
    assert "".join(text for kind, text in seen if kind == "out") == result.stdout
    # What was written with a pause in between came in that order.
    order = [text.strip() for _, text in seen if text.strip() in ("out1", "err2", "out3")]
    assert order in (["out1", "err2", "out3"], []) or len(seen) < 6, seen


def test_output_arrives_while_the_command_still_runs(box):
    first = threading.Event()
    handle = box.commands.run("echo begun; read line; echo got $line", shell=True, background=True, on_stdout=lambda text: first.set())
    assert first.wait(60)
    assert any(p.pid == handle.pid and p.running for p in box.commands.list())
    box.commands.send_stdin(handle.pid, "typed\n")
    result = handle.wait(timeout=60)
    assert (result.exit_code, result.stdout) == (0, "begun\ngot typed\n")


def test_characters_that_are_cut_by_a_read_come_whole(box):
    result = box.commands.run("printf '\\303'; sleep 0.3; printf '\\274 \\360\\237'; sleep 0.3; printf '\\230\\200'", shell=True, on_stdout=lambda text: None)
    assert result.stdout == "ü \U0001f600"


def test_a_command_is_found_again_by_its_pid_with_all_it_wrote(box):
    handle = box.commands.run("echo before; read line; echo after $line; exit 6", shell=True, background=True, on_stdout=lambda text: None)
    until("the first line is there", lambda: handle.get_logs().stdout == "before\n", 60)
    handle.disconnect()  # the socket goes, the command stays
    assert any(p.pid == handle.pid and p.running for p in box.commands.list())
    texts = []
    elsewhere = Sandbox.connect(box.id)  # not a context: leaving one destroys the sandbox
    again = elsewhere.commands.connect(handle.pid, on_stdout=texts.append)
    until("what was written before is told", lambda: "before\n" in "".join(texts), 60)
    elsewhere.commands.send_stdin(handle.pid, "typed\n")
    result = again.wait(timeout=60)
    assert (result.exit_code, result.stdout) == (6, "before\nafter typed\n")
    # And after its end as well.
    late = elsewhere.commands.connect(handle.pid).wait(timeout=60)
    assert (late.exit_code, late.stdout) == (6, "before\nafter typed\n")


def test_a_streamed_command_that_outlives_its_time_is_killed_and_says_124(box):
    result = box.commands.run("echo begun; sleep 86433 & sleep 86433", shell=True, timeout=1, on_stdout=lambda text: None)
    assert (result.exit_code, result.stdout) == (124, "begun\n")
    until("none is left", lambda: box.commands.run("pgrep -f 'sleep 8643[3]'", shell=True).exit_code == 1, 60)


def test_a_streamed_command_that_cannot_start_is_an_error(box):
    for ask in ({"cmd": "no-such-program"}, {"cmd": "true", "cwd": "/no/such/place"}, {"cmd": "true", "envs": {"A=B": ""}}):
        with pytest.raises(RuntimeError) as refused:
            box.commands.run(**ask, on_stdout=lambda text: None)
        assert any(word in str(refused.value) for word in ("no-such-program", "cwd", "envs")), refused.value


def test_sixty_four_commands_run_at_once_and_none_is_mixed_up(box, server):
    """Half of them over sockets, half in plain calls, each of those on a connection of its own."""
    def one(n):
        line = f"for i in 1 2 3; do echo {n}; done; sleep 0.2; exit {n}"
        if n % 2:
            result = box.commands.run(line, shell=True, timeout=110, on_stdout=lambda text: None)
            return result.exit_code, result.stdout
        result = server.exec(box.id, line, timeout_secs=110)
        return result["exit_code"], result["stdout"]

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        results = list(pool.map(one, range(64)))
    assert results == [(n, f"{n}\n" * 3) for n in range(64)]


def test_two_hundred_megabytes_reach_a_streaming_client_whole(server, as_user):
    size = 200 << 20
    line = "0123456789abcdef" * 4096  # 64 KiB
    with Sandbox.create(vcpus=1, memory_mb=512, timeout=1800) as sandbox:
        digest, got = hashlib.sha256(), 0

        def take(text):
            nonlocal got
            got += len(text)
            digest.update(text.encode())

        before = server.rss_mib()
        code = f"import sys; line = '0123456789abcdef' * 4096\nfor _ in range({size // len(line)}): sys.stdout.write(line)"
        handle = sandbox.commands.run("python3", ["-c", code], timeout=600, background=True, on_stdout=take)
        # The result is not asked for: the client would fetch the whole log as one JSON text beside it.
        until("the last frame has come", lambda: not handle._connected, 600, 0.2)
        grown = server.rss_mib() - before
        handle.disconnect()
        assert handle._live_exit_code == 0
        wanted = hashlib.sha256()
        for _ in range(size // len(line)):
            wanted.update(line.encode())
        assert got == size and digest.hexdigest() == wanted.hexdigest()
        assert grown < 64, f"the server's memory grew by {grown:.0f} MiB"


def test_what_the_api_did_not_start_is_listed_too(box):
    box.commands.run("setsid sleep 86444 >/dev/null 2>&1 &", shell=True)
    found = until("it is listed", lambda: [p for p in box.commands.list() if p.command.startswith("sleep 86444")], 60)
    assert found[0].running
    box.commands.kill(found[0].pid)
    until("it is gone", lambda: not [p for p in box.commands.list() if p.running and p.command.startswith("sleep 86444")], 60)


def test_standard_input_of_a_finished_process_is_refused(box):
    handle = box.commands.run("true", background=True)
    handle.wait(timeout=60)
    with pytest.raises(Exception) as refused:
        box.commands.send_stdin(handle.pid, "too late")
    assert refused.value.code == "invalid_request" and str(handle.pid) in str(refused.value)
