"""Sandboxes by SSH: OpenSSH, scp, sftp and rsync as people have them, through the relay of a real server into real machines."""

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from nullspace import Sandbox

from appliance import Appliance, until


class Access:
    """A key, a certificate for one sandbox, and what a person would type."""

    def __init__(self, server: Appliance, sandbox: str, place: Path, **more):
        self.place, self.server, self.sandbox = place, server, sandbox
        place.mkdir(parents=True, exist_ok=True)
        self.key = place / "key"
        if not self.key.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key], check=True)
        self.certify(**more)

    def certify(self, **more):
        public = (self.place / "key.pub").read_text().strip()
        self.answer = self.server.done(200, "POST", f"/v1/sandboxes/{self.sandbox}/ssh-access", {"public_key": public} | more)
        (self.place / "key-cert.pub").write_text(self.answer["certificate"] + "\n")
        (self.place / "known_hosts").write_text(f"[{self.answer['host']}]:{self.answer['port']} {self.answer['host_key']}\n")

    @property
    def options(self) -> list[str]:
        return ["-F", "none", "-i", str(self.key), "-o", f"CertificateFile={self.place}/key-cert.pub", "-o", "IdentitiesOnly=yes",
                "-o", f"UserKnownHostsFile={self.place}/known_hosts", "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes",
                "-o", "ConnectTimeout=30"]

    @property
    def at(self) -> str:
        return f"{self.answer['user']}@{self.answer['host']}"

    def command(self, *words: str, options: tuple[str, ...] = ()) -> list[str]:
        return ["ssh", *self.options, *options, "-p", str(self.answer["port"]), self.at, *words]

    def run(self, *words: str, options: tuple[str, ...] = (), **more) -> subprocess.CompletedProcess:
        more.setdefault("stdin", subprocess.DEVNULL) if "input" not in more else None
        return subprocess.run(self.command(*words, options=options), capture_output=True, timeout=120, **more)

    def out(self, *words: str, **more) -> str:
        done = self.run(*words, **more)
        assert done.returncode == 0, done
        return done.stdout.decode().strip()

    @property
    def remote_shell(self) -> str:
        return " ".join(["ssh", *self.options, "-p", str(self.answer["port"])])


@pytest.fixture(scope="module")
def access(server, workspace):
    one = server.create(timeout_ms=1_800_000)
    yield Access(server, one, workspace / "ssh")
    server.destroy(one)


# ---- commands -------------------------------------------------------------------------------------


def test_a_command_runs_with_its_output_apart_and_its_exit_status(access):
    done = access.run("echo out; echo err >&2; exit 42")
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 42)
    assert access.run("kill -TERM $$").returncode != 0
    assert access.out("id -un; pwd; echo $HOME").split() == ["root", "/root", "/root"]


def test_input_passes_to_its_end_in_both_directions(access):
    data = os.urandom(3 << 20)
    done = access.run("cat", input=data)
    assert done.returncode == 0 and done.stdout == data
    assert access.run("wc -c", input=data).stdout.strip() == str(len(data)).encode()
    assert access.run("head -c 4 /dev/zero; cat > /dev/null", input=b"").stdout == b"\0" * 4


def test_another_user_is_who_the_certificate_names(server, access, workspace):
    as_user = Access(server, access.sandbox, workspace / "ssh-user", user="user")
    assert as_user.out("id -un; pwd").split() == ["user", "/home/user"]
    done = subprocess.run([*as_user.command()[:-1], f"root@{as_user.answer['host']}", "id"], capture_output=True, timeout=60)
    assert done.returncode == 255, "the name in the certificate is the only one"


def test_a_shell_has_a_terminal_that_follows_the_window(access):
    primary, secondary = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(primary, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 111, 0, 0))
    shell = subprocess.Popen(access.command(options=("-tt",)), stdin=secondary, stdout=secondary, stderr=secondary, start_new_session=True)
    os.close(secondary)
    seen = b""

    def shows(what: bytes) -> bool:
        nonlocal seen
        while select.select([primary], [], [], 0.05)[0]:
            try:
                data = os.read(primary, 65536)
            except OSError:
                break
            if not data:
                break
            seen += data
        return what in seen

    os.write(primary, b"stty size; tty; echo done-$((40+2))\n")
    until("the shell answers", lambda: shows(b"done-42"), 60)
    assert b"33 111" in seen and b"/dev/pts/" in seen, seen
    fcntl.ioctl(primary, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 70, 0, 0))
    shell.send_signal(signal.SIGWINCH)

    def resized() -> bool:
        os.write(primary, b"stty size\n")
        time.sleep(0.2)
        return shows(b"20 70")

    until("the new size arrives", resized, 30)
    os.write(primary, b"exit 7\n")
    until("it ends", lambda: shows(b"\0") or shell.poll() is not None, 30)
    assert shell.wait(30) == 7
    os.close(primary)


def test_many_channels_share_one_connection(access, tmp_path):
    control = f"/tmp/ns-{os.getpid()}.ctl"
    master = subprocess.Popen(access.command("-N", options=("-M", "-S", control)), stdin=subprocess.DEVNULL)
    try:
        until("the connection stands", lambda: Path(control).exists(), 60)
        with ThreadPoolExecutor(10) as pool:
            done = list(pool.map(lambda n: access.run(f"echo {n}; exit {n}", options=("-S", control)), range(20)))
        assert [(d.stdout.decode().strip(), d.returncode) for d in done] == [(str(n), n) for n in range(20)]
    finally:
        master.terminate()
        master.wait()


def test_what_a_connection_ran_ends_when_the_client_dies(server, access):
    client = subprocess.Popen(access.command("exec sleep 4242"), stdin=subprocess.PIPE)
    until("it runs", lambda: "4242" in server.out(access.sandbox, "ps ax -o args"), 60)
    client.kill()
    client.wait()
    until("it has ended", lambda: "sleep 4242" not in server.out(access.sandbox, "ps ax -o args"), 60)


# ---- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [[], ["-O"]], ids=["sftp", "legacy"])
def test_scp_carries_files_and_trees(access, tmp_path, mode):
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "binary").write_bytes(os.urandom(300_000))
    (tree / "a name with spaces").write_text("text")
    base = ["scp", *mode, "-q", "-r", "-p", *access.options, "-P", str(access.answer["port"])]
    subprocess.run([*base, str(tree), f"{access.at}:/tmp/scp{len(mode)}"], check=True, timeout=120)
    subprocess.run([*base, f"{access.at}:/tmp/scp{len(mode)}", str(tmp_path / "back")], check=True, timeout=120)
    assert (tmp_path / "back/sub/binary").read_bytes() == (tree / "sub/binary").read_bytes()
    assert (tmp_path / "back/a name with spaces").read_text() == "text"


def test_sftp_lists_makes_renames_links_and_removes(access, tmp_path):
    (tmp_path / "up").write_bytes(b"content")
    batch = f"""
        mkdir /tmp/sftp
        cd /tmp/sftp
        put {tmp_path}/up one
        rename one two
        symlink two link
        chmod 600 two
        ls -l
        get link {tmp_path}/down
        rm link
        rm two
        cd /
        rmdir /tmp/sftp
    """
    done = subprocess.run(["sftp", "-q", "-b", "-", *access.options, "-P", str(access.answer["port"]), access.at],
                          input=batch, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done
    assert re.search(r"-rw-------.*two", done.stdout) and (tmp_path / "down").read_bytes() == b"content"
    missing = subprocess.run(["sftp", "-q", "-b", "-", *access.options, "-P", str(access.answer["port"]), access.at],
                             input="get /nowhere /tmp/x", capture_output=True, text=True, timeout=120)
    assert missing.returncode != 0 and ("not found" in missing.stderr.lower() or "no such file" in missing.stderr.lower()), missing


def test_rsync_carries_only_what_differs(access, tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    for n in range(20):
        (tree / f"file{n}").write_bytes(os.urandom(20_000))

    def sync() -> str:
        done = subprocess.run(["rsync", "-a", "--delete", "--stats", "-e", access.remote_shell, f"{tree}/", f"{access.at}:/tmp/rsync/"],
                              capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done
        return re.search(r"files transferred: (\d+)", done.stdout)[1]

    assert sync() == "20"
    (tree / "file3").write_bytes(os.urandom(20_001))
    (tree / "file4").unlink()
    assert sync() == "1" and sync() == "0"
    assert access.out("ls /tmp/rsync | wc -l") == "19"


# ---- ports ----------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_ports_are_forwarded_in_both_directions(server, access):
    """To a service that only listens on the machine's loopback, and from inside to one that only listens on ours."""
    inner, outer, remote = 8700, free_port(), 8701
    server.background(access.sandbox, f"python3 -m http.server {inner} --bind 127.0.0.1")
    listener = socket.create_server(("127.0.0.1", 0))

    def greet():
        while True:
            try:
                link, _ = listener.accept()
            except OSError:
                return
            with link:
                link.sendall(b"from outside\n")

    threading.Thread(target=greet, daemon=True).start()
    forwards = ("-L", f"127.0.0.1:{outer}:127.0.0.1:{inner}", "-R", f"{remote}:127.0.0.1:{listener.getsockname()[1]}", "-o", "ExitOnForwardFailure=yes")
    client = subprocess.Popen(access.command("-N", options=forwards), stdin=subprocess.DEVNULL)
    try:
        def answered() -> bool:
            try:
                with socket.create_connection(("127.0.0.1", outer), 10) as link:
                    link.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    return link.recv(100).startswith(b"HTTP/1.0 200")
            except OSError:
                return False

        until("the service inside answers", answered, 60)
        program = f"import socket; print(socket.create_connection(('127.0.0.1', {remote}), 10).recv(100).decode())"
        assert server.out(access.sandbox, "python3", "-c", program) == "from outside"
    finally:
        client.terminate()
        client.wait()
        listener.close()


def test_agent_forwarding_is_refused(access):
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", f"/tmp/ns-agent-{os.getpid()}"], stdout=subprocess.DEVNULL)
    try:
        until("the agent listens", lambda: Path(f"/tmp/ns-agent-{os.getpid()}").exists(), 30)
        done = access.run("echo agent=$SSH_AUTH_SOCK", options=("-A",), env=os.environ | {"SSH_AUTH_SOCK": f"/tmp/ns-agent-{os.getpid()}"})
        assert done.stdout.strip() == b"agent="
    finally:
        agent.terminate()
        agent.wait()


# ---- who may ----------------------------------------------------------------------------------------


def test_a_certificate_is_for_one_sandbox_and_one_key(server, access, workspace, tmp_path):
    other = server.create()
    elsewhere = Access(server, other, workspace / "ssh-other")
    assert elsewhere.out("hostname") != access.out("hostname"), "the certificate alone says which"
    stolen = tmp_path / "stolen"
    stolen.mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", stolen / "key"], check=True)
    (stolen / "key-cert.pub").write_text(access.answer["certificate"] + "\n")
    words = access.command("id")
    words[words.index("-i") + 1] = str(stolen / "key")
    done = subprocess.run(words, capture_output=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 255 and b"ermission denied" in done.stderr, done
    server.destroy(other)
    gone = elsewhere.run("id")
    assert gone.returncode == 255, gone


def test_keys_without_a_certificate_foreign_authorities_and_old_certificates_are_refused(server, access, tmp_path):
    def attempt(certificate: str | None) -> bytes:
        place = tmp_path / f"try{len(list(tmp_path.iterdir()))}"
        place.mkdir()
        for name in ("key", "key.pub", "known_hosts"):
            (place / name).write_bytes((access.place / name).read_bytes())
        (place / "key").chmod(0o600)
        words = [word.replace(str(access.place), str(place)) for word in access.command("id")]
        if certificate:
            (place / "key-cert.pub").write_text(certificate)
        else:
            words = [w for i, w in enumerate(words) if "CertificateFile" not in w and words[min(i + 1, len(words) - 1)].find("CertificateFile") < 0]
        done = subprocess.run(words, capture_output=True, timeout=60, stdin=subprocess.DEVNULL)
        assert done.returncode == 255, done
        return done.stderr

    assert b"ermission denied" in attempt(None)
    ca = tmp_path / "ca"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", ca], check=True)
    text = access.place / "key.pub"
    shown = subprocess.run(["ssh-keygen", "-L", "-f", access.place / "key-cert.pub"], capture_output=True, text=True, check=True).stdout
    identity = re.search(r'Key ID: "([^"]+)"', shown)[1]
    forged = tmp_path / "forged"
    forged.mkdir()
    (forged / "key.pub").write_text(text.read_text())
    subprocess.run(["ssh-keygen", "-q", "-s", ca, "-I", identity, "-n", "root", "-V", "+5m", forged / "key.pub"], check=True)
    assert b"ermission denied" in attempt((forged / "key-cert.pub").read_text())
    brief = Access(server, access.sandbox, tmp_path / "brief", ttl_seconds=1)
    until("it is refused for its age", lambda: b"ermission denied" in brief.run("id").stderr, 30)


def test_many_bad_logins_hurt_nobody_else(access, tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    words = ["ssh", "-F", "none", "-i", str(tmp_path / "key"), "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={tmp_path}/k",
             "-o", "BatchMode=yes", "-p", str(access.answer["port"]), access.at, "id"]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: subprocess.run(words, capture_output=True, timeout=120, stdin=subprocess.DEVNULL).returncode, range(60)))
    assert results == [255] * 60
    assert until("a good one is let in", lambda: access.run("true").returncode == 0, 120, 1.0)


@pytest.mark.parametrize(("body", "names"), [
    ({}, "public_key"), ({"public_key": "nonsense"}, "public_key"), ({"public_key": "ssh-ed25519 AAAA"}, "public_key"),
    ({"public_key": "KEY", "expires_in_minutes": 0}, "expires_in_minutes"), ({"public_key": "KEY", "expires_in_minutes": 61}, "expires_in_minutes"),
    ({"public_key": "KEY", "ttl_seconds": 3601}, "ttl_seconds"), ({"public_key": "KEY", "ttl_seconds": 5, "expires_in_minutes": 5}, "ttl_seconds"),
    ({"public_key": "KEY", "user": "a b"}, "user"),
])
def test_requests_for_access_that_make_no_sense_name_the_field(server, access, body, names):
    if body.get("public_key") == "KEY":
        body = body | {"public_key": (access.place / "key.pub").read_text().strip()}
    answer = server.call("POST", f"/v1/sandboxes/{access.sandbox}/ssh-access", body)
    assert answer.code == "invalid_request" and names in answer.json["error"], answer


# ---- waking, clients --------------------------------------------------------------------------------


def test_a_login_wakes_a_sandbox_that_wakes_by_itself_and_tells_why_another_does_not(server, temporary, workspace):
    one, two = temporary(timeout_action="hibernate", auto_resume=True), temporary()
    for n, sandbox in enumerate((one, two)):
        access = Access(server, sandbox, workspace / f"ssh-wake{n}")
        server.hibernate(sandbox)
        done = access.run("echo awake")
        if sandbox == one:
            assert done.stdout == b"awake\n", done
        else:
            assert done.returncode == 255 and b"paused" in done.stderr + done.stdout, done


def test_the_unmodified_client_mints_access_that_openssh_takes(as_user, tmp_path):
    with Sandbox.create(timeout=600) as sandbox:
        made = sandbox.create_ssh_access(key_dir=tmp_path / "keys", expires_in_minutes=5)
        assert made.user == "root" and made.command.startswith("ssh ")
        words = [*made.command.split(), "-o", "BatchMode=yes", "echo", "from", "the", "client"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
        assert done.stdout == "from the client\n", done


def test_both_programs_log_in(cli, server, temporary):
    one = temporary()
    done = cli("ssh", one, "echo", "hello")
    assert done.stdout == "hello\n", done


def test_what_an_editors_remote_does_works(server, access):
    """A script on standard input of `bash`, a server of its own on the loopback, a local forward to it, all over one connection."""
    script = b"uname -s; command -v sh >/dev/null && echo has-sh; mkdir -p ~/.editor && echo $$ > ~/.editor/pid; echo listening=8801; exec python3 -m http.server 8801 --bind 127.0.0.1 >/dev/null 2>&1"
    local = free_port()
    client = subprocess.Popen(access.command("bash", options=("-T", "-D", str(free_port()), "-L", f"{local}:127.0.0.1:8801")), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        client.stdin.write(script)
        client.stdin.close()
        lines = [client.stdout.readline().decode().strip() for _ in range(3)]
        assert lines == ["Linux", "has-sh", "listening=8801"]

        def answered() -> bool:
            try:
                with socket.create_connection(("127.0.0.1", local), 10) as link:
                    link.sendall(b"GET /.editor/pid HTTP/1.0\r\n\r\n")
                    return b" 200 " in link.recv(4096) or b" 404 " in link.recv(4096)
            except OSError:
                return False

        until("its server answers through the forward", answered, 60)
    finally:
        client.terminate()
        client.wait()
        client.stdout.close()


def test_the_relay_survives_a_kill_of_the_server_with_the_same_identity(own_server, workspace):
    server = own_server()
    access = Access(server, server.create(), workspace / "ssh-kill")
    before = access.answer["host_key"], access.answer["host_ca"]
    assert access.out("echo one") == "one"
    server.kill()
    server.start()
    access.certify()
    assert (access.answer["host_key"], access.answer["host_ca"]) == before and json.dumps(access.answer)
    assert access.out("echo two") == "two"
