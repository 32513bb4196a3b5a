"""The command line: the same journey with the public client's `nullspace` and with ours, then what is ours alone."""

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from appliance import binary, cache, until

PUBLIC = Path(sys.executable).parent / "nullspace"


class Cli:
    def __init__(self, program, env, cwd):
        self.program, self.cwd = program, cwd
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("NULLSPACE_")} | {"NULLSPACE_CACHE": str(cache())} | env

    def __call__(self, *words, stdin="", exit=0, env=None):
        done = subprocess.run([self.program, *words], input=stdin, capture_output=True, text=True, timeout=180,
                              env=self.env | (env or {}), cwd=self.cwd)
        assert done.returncode == exit, (words, done)
        return done

    def json(self, *words, **more):
        return json.loads(self(*words, **more).stdout)


@pytest.fixture(scope="module", params=["public", "ours"])
def cli(request, client_env, workspace):
    return Cli({"public": PUBLIC, "ours": binary()}[request.param], client_env, workspace / "home")


@pytest.fixture(scope="module")
def ours(client_env, workspace):
    return Cli(binary(), client_env, workspace / "home")


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
