"""The command line: the same journey with the public client's `nullspace` and with ours, then what is ours alone."""

import base64
import json
import os
import re
import subprocess
import threading

import pytest

from appliance import until
from command_line import PUBLIC, Cli


def test_a_sandbox_is_made_used_and_destroyed_from_the_command_line(cli):
    made = cli.json("sandbox", "create", "--vcpus", "1", "--memory", "256", "--timeout", "600", "--env", "A=from the flag", "--metadata", "k=v",
                    "--cwd", "/tmp")
    sandbox = made["id"]
    assert made["status"] == "running" and made["config"] == {"vcpus": 1, "memory_mb": 256} | {k: v for k, v in made["config"].items() if k == "disk_mb"}
    assert made["metadata"] == {"k": "v"} and made["timeout_ms"] == 600_000
    assert cli.json("sandbox", "get", sandbox, "--json")["id"] == sandbox
    assert sandbox in {s["id"] for s in cli.json("sandbox", "list", "--json")}
    assert [s["id"] for s in cli.json("sandbox", "list", "--json", "--metadata", "k=v", "--state", "running")] == [sandbox]
    assert sandbox in cli("sandbox", "list").stdout

    ran = cli("sandbox", "exec", sandbox, "--shell", "echo $A; pwd; echo bad >&2; exit 9", exit=9)
    assert (ran.stdout, ran.stderr) == ("from the flag\n/tmp\n", "bad\n")
    assert cli("sandbox", "exec", sandbox, "--", "printf", "%s|", "a b", "--flag").stdout == "a b|--flag|"
    result = cli.json("sandbox", "exec", sandbox, "--json", "--env", "B=2", "--cwd", "/", "--shell", "echo $B $PWD; exit 4", exit=4)
    assert {k: result[k] for k in ("exit_code", "stdout", "stderr")} == {"exit_code": 4, "stdout": "2 /\n", "stderr": ""}
    assert cli.json("sandbox", "exec", sandbox, "--background", "--json", "sleep", "1")["pid"] > 0

    cli("sandbox", "file", "write", sandbox, "/tmp/f.txt", stdin="line\nü\n")
    assert cli("sandbox", "file", "read", sandbox, "/tmp/f.txt").stdout == "line\nü\n"
    cli("sandbox", "file", "write", sandbox, "/tmp/f.bin", "--encoding", "base64", stdin=base64.b64encode(b"\xff\0").decode())
    assert cli.json("sandbox", "file", "read", sandbox, "/tmp/f.bin", "--encoding", "base64", "--json")["content"] == base64.b64encode(b"\xff\0").decode()
    assert {"f.txt", "f.bin"} <= {f["name"] for f in cli.json("sandbox", "file", "list", sandbox, "/tmp", "--json")}
    assert "f.txt" in cli("sandbox", "file", "list", sandbox, "/tmp").stdout

    assert cli.json("sandbox", "kill", sandbox, "--json") == {"id": sandbox, "status": "destroyed"}
    assert sandbox not in {s["id"] for s in cli.json("sandbox", "list", "--json")}


def test_failures_have_the_exit_codes_of_the_contract(cli, sandbox):
    missing = "sb_" + "0" * 32
    error = json.loads(cli("sandbox", "get", missing, "--json", exit=3).stdout)["error"]
    assert error["code"] == "sandbox_not_found" and missing in error["message"] and error["request_id"]
    assert missing in cli("sandbox", "kill", missing, exit=3).stderr
    cli("sandbox", "file", "read", sandbox, "/no/such/file", exit=3)
    cli("sandbox", "create", "--template", "no-such", exit=3)
    cli("sandbox", "get", sandbox, env={"NULLSPACE_API_KEY": "ns_live_wrong"}, exit=4)
    cli("sandbox", "create", "--vcpus", "99", exit=2)
    cli("sandbox", "exec", sandbox, "no-such-program", exit=8)
    cli("sandbox", "exec", sandbox, "--timeout", "1", "sleep", "86400", exit=8)
    cli("sandbox", "no-such-verb", exit=2)
    cli("sandbox", "get", sandbox, env={"NULLSPACE_API_URL": "http://127.0.0.1:9"}, exit=1)


def test_the_public_doctor_finds_the_server_and_the_key_good(client_env, workspace):
    told = Cli(PUBLIC, client_env, workspace / "home").json("doctor", "--json")
    by_name = {p["name"]: p["status"] for p in told["probes"]}
    assert told["ok"] and by_name["api_reachability"] == by_name["key_validity"] == "pass", told


def test_our_doctor_judges_the_host_and_says_how_to_mend(ours):
    told = json.loads(subprocess.run([ours.program, "doctor", "--json"], capture_output=True, text=True, timeout=240, env=ours.env, cwd=ours.cwd).stdout)
    status = {p["name"]: p["status"] for p in told["probes"]}
    for probe in told["probes"]:
        assert probe["status"] in ("pass", "warn", "fail") and probe["name"] and probe["message"], probe
        assert probe["status"] == "pass" or probe["fix"], probe
    assert told["ok"] == ("fail" not in status.values()), told
    # What machines need is there, or this suite would not run; a port may be in use, names may not be answered.
    for subject in ("rights", "qemu", "image", "network", "disk", "memory"):
        assert status[subject] in ("pass", "warn"), told
    assert {"acceleration", "dns", "port", "control groups"} <= set(status), told


def test_our_output_has_colours_on_a_terminal_only(ours, sandbox):
    assert "\x1b[" not in ours("sandbox", "list", env={"NO_COLOR": ""}).stdout
    assert "\x1b[" not in ours("sandbox", "get", "sb_" + "0" * 32, exit=3, env={"NO_COLOR": ""}).stderr


def test_our_errors_come_with_a_hint(ours):
    told = ours("sandbox", "list", env={"NULLSPACE_API_KEY": ""}, exit=4)
    assert "NULLSPACE_API_KEY" in told.stderr
    told = ours("sandbox", "list", env={"NULLSPACE_API_URL": "http://127.0.0.1:9"}, exit=1)
    assert "127.0.0.1:9" in told.stderr and re.search(r"hint|running|nullspace server|NULLSPACE_API_URL", told.stderr)


def test_our_program_knows_its_version_and_its_verbs(ours):
    assert re.match(r"nullspace \d+\.\d+\.\d+", ours("--version").stdout)
    assert {"sandbox", "server", "key", "doctor"} <= set(re.findall(r"^\s+(\w+)\s", ours("--help").stdout, re.MULTILINE))


def test_a_background_command_started_from_the_command_line_runs_on(ours, server, temporary):
    one = temporary()
    ours("sandbox", "exec", one, "--background", "--shell", "sleep 1; echo done > /tmp/flag")
    until("it has run to its end", lambda: server.exec(one, "cat /tmp/flag")["stdout"] == "done\n", 60)


@pytest.fixture(scope="module")
def long_lived(server):
    made = server.create(timeout_ms=1_800_000)
    yield made
    server.destroy(made)


def test_processes_are_followed_fed_and_killed_from_the_command_line(cli, long_lived):
    one = ("sandbox", "process")
    ran = cli(*one, "stream", long_lived, "--shell", "echo out; echo err >&2; exit 5", exit=5)
    assert (ran.stdout, ran.stderr) == ("out\n", "err\n")
    assert cli.json(*one, "stream", long_lived, "--json", "printf", "x")["stdout"] == "x"
    pid = str(cli.json("sandbox", "exec", long_lived, "--background", "--json", "--shell", "echo begun; read x; echo got $x; exit 3")["pid"])
    assert any(str(p["pid"]) == pid and p["running"] for p in cli.json(*one, "list", long_lived, "--json"))
    cli(*one, "stdin", long_lived, pid, stdin="typed\n")
    attached = cli(*one, "attach", long_lived, pid, exit=3)
    assert "got typed" in attached.stdout
    logs = cli.json(*one, "logs", long_lived, pid, "--json")
    assert (logs["output"], logs["exit_code"]) == ("begun\ngot typed\n", 3)
    sleeping = str(cli.json("sandbox", "exec", long_lived, "--background", "--json", "sleep", "86400")["pid"])
    assert cli.json(*one, "kill", long_lived, sleeping, "--json")["status"] == "killed"
    assert cli(*one, "code-run", long_lived, "print(6 * 7)").stdout == "42\n"
    assert cli(*one, "code-run", long_lived, "--language", "bash", "exit 4", exit=4).stdout == ""
    cli(*one, "logs", long_lived, "4000000", exit=3)


def test_terminals_are_managed_from_the_command_line(cli, long_lived):
    made = cli.json("sandbox", "pty", "create", long_lived, "--cols", "90", "--rows", "33", "--cwd", "/tmp")
    session = made["session_id"]
    assert (made["cols"], made["rows"]) == (90, 33) and session in {s["session_id"] for s in cli.json("sandbox", "pty", "list", long_lived)}
    cli("sandbox", "pty", "resize", long_lived, session, "--cols", "80", "--rows", "24")
    assert cli.json("sandbox", "pty", "get", long_lived, session)["cols"] == 80
    cli("sandbox", "pty", "kill", long_lived, session)
    until("it is gone", lambda: session not in {s["session_id"] for s in cli.json("sandbox", "pty", "list", long_lived)}, 60)


def test_our_terminal_works_as_a_pipe_too(ours, long_lived):
    session = ours.json("sandbox", "pty", "create", long_lived)["session_id"]
    done = ours("sandbox", "pty", "connect", long_lived, "--session-id", session, stdin="echo in-$((40+2)); exit 6\n", exit=6)
    assert "in-42" in done.stdout


def test_every_file_verb_works_from_the_command_line(cli, long_lived, tmp_path):
    def file(*words, **more):
        return cli("sandbox", "file", *words, **more)

    root = "/workspace/verbs"
    cli("sandbox", "exec", long_lived, "--shell", f"rm -rf {root}")
    file("write-files", long_lived, json.dumps({f"{root}/a.txt": "a needle\n", f"{root}/b.txt": "hay\n"}))
    assert cli.json("sandbox", "file", "info", long_lived, f"{root}/a.txt")["size"] == 9
    assert [m["file"] for m in cli.json("sandbox", "file", "find", long_lived, root, "needle")] == [f"{root}/a.txt"]
    assert cli.json("sandbox", "file", "search", long_lived, root, "*.txt") == [f"{root}/a.txt", f"{root}/b.txt"]
    assert cli.json("sandbox", "file", "replace", long_lived, "needle", "thread", f"{root}/a.txt")["replacements"] == 1
    assert cli.json("sandbox", "file", "mv", long_lived, f"{root}/b.txt", f"{root}/c.txt")["path"] == f"{root}/c.txt"
    file("mkdir", long_lived, f"{root}/d/e")
    file("chmod", long_lived, f"{root}/c.txt", "0600")
    assert cli.json("sandbox", "file", "info", long_lived, f"{root}/c.txt")["mode"] == "0600"
    assert file("exists", long_lived, f"{root}/c.txt").returncode == 0
    file("exists", long_lived, f"{root}/none", exit=1)
    file("rm", long_lived, f"{root}/d")
    assert cli.json("sandbox", "file", "download-url", long_lived, f"{root}/c.txt", "--json")["url"].startswith("http")
    assert cli.json("sandbox", "file", "upload-url", long_lived, f"{root}/up")["token"]

    big = tmp_path / "big.bin"
    big.write_bytes(os.urandom(20_000_000))
    told = cli.json("sandbox", "upload", long_lived, str(big), f"{root}/big.bin", "--json", "--checksum", "sha256")
    assert told["transport"] == "resumable" and told["result"]["bytes_uploaded"] == 20_000_000
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/f.txt").write_text("in a tree")
    cli("sandbox", "upload", long_lived, str(tmp_path / "tree"), f"{root}/tree")
    assert file("read", long_lived, f"{root}/tree/sub/f.txt").stdout == "in a tree"
    cli("sandbox", "upload", long_lived, "-", f"{root}/stdin.txt", stdin="from a pipe")
    assert file("read", long_lived, f"{root}/stdin.txt").stdout == "from a pipe"


def test_our_download_brings_a_file_back_and_our_watch_sees_one_come(ours, server, long_lived, tmp_path):
    server.exec(long_lived, "head -c 3000000 /dev/urandom > /tmp/down.bin; mkdir -p /workspace/seen")
    ours("sandbox", "download", long_lived, "/tmp/down.bin", str(tmp_path / "down.bin"))
    sum_inside = server.out(long_lived, "sha256sum /tmp/down.bin").split()[0]
    assert __import__("hashlib").sha256((tmp_path / "down.bin").read_bytes()).hexdigest() == sum_inside
    watching = subprocess.Popen([ours.program, "sandbox", "file", "watch", long_lived, "/workspace/seen", "--timeout", "30"],
                                stdout=subprocess.PIPE, text=True, env=ours.env, cwd=ours.cwd)

    lines = []
    reading = threading.Thread(target=lambda: lines.append(watching.stdout.readline()))
    reading.start()

    def seen():
        # Until it watches, nothing is seen; so something happens again and again.
        server.call("POST", f"/v1/sandboxes/{long_lived}/files/write", {"path": "/workspace/seen/x", "content": "1"})
        return lines

    try:
        line = json.loads(until("a change is told", seen, 30, 0.3)[0])
        assert line["name"] == "x" and line["path"] == "/workspace/seen/x" and line["event_type"] in ("create", "write")
    finally:
        watching.kill()
        watching.wait()
