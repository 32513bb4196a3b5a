"""Commands as a user of the public client runs them."""

import pytest
from nullspace import NotFoundError, SandboxError

from appliance import until


def test_argv_reaches_the_program_exactly(box):
    args = ["one two", "", "$HOME", "*", "quote'\"", "über"]
    result = box.commands.run("python3", ["-c", "import json, sys; print(json.dumps(sys.argv[1:]))", *args])
    assert result.exit_code == 0
    assert __import__("json").loads(result.stdout) == args


def test_the_shell_sees_a_line_and_both_streams_and_the_status_come_back(box):
    result = box.commands.run("echo out; echo err >&2; exit 42", shell=True)
    assert (result.exit_code, result.stdout, result.stderr) == (42, "out\n", "err\n")
    assert result.pid > 1


def test_a_command_has_its_own_directory_and_environment(box):
    result = box.commands.run("pwd; echo $ONLY_HERE", shell=True, cwd="/var/tmp", envs={"ONLY_HERE": "now"})
    assert result.stdout == "/var/tmp\nnow\n"
    assert box.commands.run("echo [$ONLY_HERE]", shell=True).stdout == "[]\n"
    assert box.commands.run("pwd").stdout == "/workspace\n"


def test_a_killing_signal_shows_as_128_and_its_number(box):
    assert box.commands.run("kill -TERM $$", shell=True).exit_code == 143


def test_a_background_command_is_waited_for_and_its_logs_stay(box):
    handle = box.commands.run("echo begun; read line; echo got $line; exit 7", shell=True, background=True)
    assert any(p.pid == handle.pid and p.running for p in box.commands.list())
    until("the first line is logged", lambda: handle.get_logs().stdout == "begun\n", 60)
    assert handle.get_logs().exit_code is None
    box.commands.send_stdin(handle.pid, "a line\n")
    result = handle.wait(timeout=60)
    assert (result.exit_code, result.stdout, result.stderr) == (7, "begun\ngot a line\n", "")
    logs = box.commands.get_logs(handle.pid)
    assert (logs.stdout, logs.output, logs.exit_code) == ("begun\ngot a line\n", "begun\ngot a line\n", 7)


def test_a_background_command_outlives_its_foreground_timeout(box):
    handle = box.commands.run("sleep 2.5; echo survived", shell=True, background=True, timeout=1)
    assert handle.wait(timeout=60).stdout == "survived\n"


def test_kill_ends_the_whole_process_group_and_the_sandbox_lives(box):
    handle = box.commands.run("sleep 86411 & sleep 86411; wait", shell=True, background=True)
    until("both run", lambda: box.commands.run("pgrep -c -f 'sleep 8641[1]'", shell=True).stdout.strip() >= "2", 60)
    handle.kill()
    assert handle.wait(timeout=60).exit_code == 137
    until("none is left", lambda: box.commands.run("pgrep -f 'sleep 8641[1]'", shell=True).exit_code == 1, 60)
    assert box.is_running()


def test_a_foreground_command_that_outlives_its_time_is_killed_with_all_it_started(box):
    with pytest.raises(SandboxError) as refused:
        box.commands.run("sleep 86422 & sleep 86422", shell=True, timeout=1)
    assert refused.value.code == "exec_timeout"
    until("none is left", lambda: box.commands.run("pgrep -f 'sleep 8642[2]'", shell=True).exit_code == 1, 60)


def test_a_program_that_is_not_there_is_said_so(box):
    with pytest.raises(SandboxError) as refused:
        box.commands.run("no-such-program")
    assert refused.value.code == "exec_failed" and "no-such-program" in str(refused.value)
    assert box.commands.run("no-such-program", shell=True).exit_code == 127


def test_unknown_processes_are_not_found(box):
    for ask in (box.commands.get_logs, box.commands.kill, lambda pid: box.commands.send_stdin(pid, "x")):
        with pytest.raises(NotFoundError) as refused:
            ask(4_000_000)
        assert refused.value.code == "process_not_found"


def test_code_runs_in_python_and_javascript(box):
    assert box.process.code_run("print(6 * 7)").stdout == "42\n"
    assert box.process.code_run("console.log(6 * 7)", language="javascript", timeout=60).stdout == "42\n"


def test_output_that_is_not_utf8_is_replaced_and_never_an_error(box):
    result = box.commands.run(r"printf 'a\377\376b\303\274'; printf '\200' >&2", shell=True)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "a\ufffd\ufffdbü", "\ufffd")
