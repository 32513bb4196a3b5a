"""What only a real machine can show: each sandbox is a machine of its own, of the asked size, with the asked reach."""

import concurrent.futures
import json
import os
import subprocess
import time
import urllib.request

import pytest

from appliance import until


@pytest.fixture(scope="module")
def pair(server):
    """Two sandboxes of one template made at the same moment, both with internet access."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda _: server.create(timeout_ms=1_800_000), range(2)))
    yield made
    for one in made:
        server.destroy(one)


@pytest.mark.parametrize("what", [
    "hostname",
    "cat /etc/machine-id",
    "cat /proc/sys/kernel/random/boot_id",
    "cat /proc/sys/kernel/random/uuid",
    "head -c 32 /dev/urandom | sha256sum",
    "python3 -c 'import os, uuid; print(os.urandom(16).hex(), uuid.uuid4())'",
])
def test_two_clones_of_one_template_differ(server, pair, what):
    first, second = (server.out(s, what) for s in pair)
    assert first and second and first != second


def test_each_machine_has_an_ssh_host_key_of_its_own_from_the_start(server, pair):
    keys = []
    for one in pair:
        # The server finds it, takes it, and shows it to whoever connects.
        server.out(one, "mkdir -p /run/sshd && /usr/sbin/sshd -p 2222 -o ListenAddress=127.0.0.1")
        shown = server.out(one, "ssh-keyscan -T 30 -p 2222 127.0.0.1 2>/dev/null", timeout_secs=110).split()
        public = server.out(one, "cat /run/nullspace/ssh_host_ed25519_key.pub").split()
        assert shown[1:3] == public[:2] and public[0] == "ssh-ed25519"
        assert server.out(one, "stat -c '%a %U' /run/nullspace/ssh_host_ed25519_key") == "600 root"
        keys.append(public[1])
        server.out(one, "pkill -x sshd")
    assert len(set(keys)) == 2


def test_the_clock_is_right(server, pair):
    for one in pair:
        before = time.time()
        inside = float(server.out(one, "date +%s.%N"))
        assert before - 1 <= inside <= time.time() + 1


def test_the_guest_runs_a_kernel_of_its_own_and_names_itself(server, pair):
    assert server.out(pair[0], "uname -r") != os.uname().release
    name = server.out(pair[0], "hostname")
    assert name in server.out(pair[0], "cat /etc/hostname") and server.out(pair[0], f"getent hosts {name}")


def test_processors_memory_and_disk_are_as_asked(server, temporary):
    big = temporary(vcpus=2, memory_mb=512, disk_mb=4096)
    assert server.out(big, "nproc") == "2"
    total = int(server.out(big, "awk '/MemTotal/ {print $2}' /proc/meminfo")) / 1024
    assert 400 < total <= 512
    disk = int(server.out(big, "df --output=size -BM / | tail -1").rstrip("M"))
    assert 3600 <= disk <= 4096
    small = temporary()
    assert server.out(small, "nproc") == "1"
    assert 180 < int(server.out(small, "awk '/MemTotal/ {print $2}' /proc/meminfo")) / 1024 <= 256
    assert int(server.out(small, "df --output=size -BM / | tail -1").rstrip("M")) <= 2048


def test_a_machine_cannot_take_more_memory_than_it_has(server, temporary):
    one = temporary()
    result = server.exec(one, "python3", "-c", "x = bytearray(400 << 20); print(len(x))", timeout_secs=110)
    assert result["exit_code"] != 0
    assert server.out(one, "echo alive") == "alive"


def test_a_machine_can_use_all_the_memory_it_has(server, temporary):
    """In its programs and in its file cache, on pages that no machine of this template has touched before."""
    one = temporary(memory_mb=512)
    server.out(one, "dd if=/dev/zero of=/var/tmp/cached bs=1M count=300 status=none && cat /var/tmp/cached > /dev/null", timeout_secs=110)
    assert server.out(one, "python3", "-c", "x = bytearray(b'x') * (330 << 20); print(len(x))", timeout_secs=110) == str(330 << 20)
    assert server.out(one, "echo alive") == "alive"


def test_a_full_disk_inside_is_the_guests_own_trouble(server, temporary):
    one, other = temporary(), temporary()
    result = server.exec(one, "fallocate -l 3G /var/tmp/big")
    assert result["exit_code"] != 0 and "No space left" in result["stderr"]
    assert server.out(one, "echo alive") == "alive"
    assert server.out(other, "echo alive") == "alive"


def test_the_users_of_the_contract_are_there_and_commands_run_as_them(server, sandbox):
    assert server.out(sandbox, "id -un; pwd") == "root\n/workspace"
    assert server.out(sandbox, "id -un; echo $HOME; touch ~/mine && stat -c %U ~/mine", user="user").split() == ["user", "/home/user", "user"]
    assert server.out(sandbox, "id -un", user="nobody") == "nobody"
    for place in ("/workspace", "/srv", "/tmp", "/var/tmp"):
        server.out(sandbox, f"touch {place}/by-user && rm {place}/by-user", user="user")
    assert server.exec(sandbox, "cat /etc/shadow", user="user")["exit_code"] != 0
    refused = server.call("POST", f"/v1/sandboxes/{sandbox}/exec", {"command": "true", "user": "no-such-user"})
    assert refused.status >= 400 and "no-such-user" in refused.json["error"], refused


def test_the_tools_that_are_promised_are_installed(server, sandbox):
    server.out(sandbox, "for tool in bash python3 pip git curl node npm ssh ps; do command -v $tool >/dev/null || exit 1; done")
    server.out(sandbox, "python3 -m venv --without-pip /tmp/venv && /tmp/venv/bin/python -c 'import ssl, sqlite3'", timeout_secs=110)


def test_docker_like_work_needs_no_host(server, sandbox):
    """Mounts, namespaces and loop-backs are the guest's own."""
    assert server.out(sandbox, "mkdir -p /mnt/t && mount -t tmpfs t /mnt/t && touch /mnt/t/x && umount /mnt/t && unshare -n true && echo ok") == "ok"


def test_sandboxes_are_alone_with_their_link(server, pair):
    """No way from a guest to the host's services, to another guest, or to a cloud's metadata."""
    port = server.url.rsplit(":", 1)[1]
    gateway = server.out(pair[0], "ip route show default | awk '{print $3}'")
    assert gateway
    others = server.out(pair[1], "hostname -I").split()
    probe = (
        "import socket, sys\n"
        "for host, port in [a.rsplit(':', 1) for a in sys.argv[1:]]:\n"
        "    try: socket.create_connection((host, int(port)), 3); print('open', host, port)\n"
        "    except OSError: pass\n"
    )
    targets = [f"{gateway}:{port}", f"{gateway}:22", "169.254.169.254:80", f"127.0.0.1:{port}"]
    for address in _host_addresses():
        targets += [f"{address}:{port}"]
    targets += [f"{a}:22" for a in others if ":" not in a and a not in server.out(pair[0], "hostname -I").split()]
    assert server.out(pair[0], "python3", "-c", probe, *targets, timeout_secs=110) == ""


def _host_addresses():
    links = json.loads(subprocess.run(["ip", "-json", "-4", "addr", "show"], capture_output=True, check=True, text=True).stdout)
    return [a["local"] for link in links for a in link["addr_info"] if not a["local"].startswith("127.")]


def test_with_internet_access_there_is_a_way_out_and_names_are_answered(server, pair):
    assert server.out(pair[0], "ip route show default").startswith("default via ")
    # The forwarder answers at all: a name that cannot exist is refused, not left without an answer.
    code = "import socket\ntry: socket.getaddrinfo('no-such-name.invalid', 80)\nexcept socket.gaierror as e: print(e.errno)"
    assert server.out(pair[0], "python3", "-c", code, timeout_secs=110) in ("-2", "-5")


def test_the_guests_package_mirror_is_reached_if_the_host_reaches_it(server, pair):
    mirror = server.out(pair[0], "grep -ho 'http://[^ ]*' /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | head -n 1")
    index = mirror.rstrip("/") + "/dists/" + server.out(pair[0], ". /etc/os-release; echo $VERSION_CODENAME") + "/InRelease"
    try:
        with urllib.request.urlopen(index, timeout=20) as reply:
            expected = reply.read(60)
    except OSError as error:
        pytest.skip(f"the host itself does not reach the guest's package mirror: {error}")
    got = server.exec(pair[0], "curl", "-sS", "-m", "60", "-r", "0-59", index, timeout_secs=90)
    assert got["stdout"].startswith(expected[:40].decode()), got


def test_without_internet_access_nothing_is_reached(server, temporary):
    alone = temporary(internet_access=False)
    code = (
        "import socket\n"
        "for host, port in (('1.1.1.1', 443), ('8.8.8.8', 53), ('169.254.169.254', 80)):\n"
        "    try: socket.create_connection((host, port), 3); print('open', host)\n"
        "    except OSError: pass\n"
        "try: print('name', socket.getaddrinfo('example.com', 80))\n"
        "except socket.gaierror: pass\n"
    )
    assert server.out(alone, "python3", "-c", code, timeout_secs=110) == ""
    assert server.out(alone, "python3 -c 'import socket; s = socket.create_server((\"127.0.0.1\", 0)); socket.create_connection(s.getsockname()); print(1)'") == "1"


def test_one_busy_sandbox_cannot_take_the_other_ones_processor_for_itself(server, pair):
    busy = server.call("POST", f"/v1/sandboxes/{pair[0]}/exec", {"command": "while :; do :; done", "shell": True, "background": True})
    assert busy.status == 200, busy
    assert server.out(pair[1], "echo alive", timeout_secs=60) == "alive"
    monitor = until("the monitor is recorded", lambda: server.monitors().get(pair[0]))

    def ticks():
        return sum(int(x) for x in open(f"/proc/{monitor}/stat").read().rsplit(")", 1)[1].split()[11:13])

    begin, used = time.monotonic(), ticks()
    until("the guest has used a second of processor time", lambda: ticks() - used >= os.sysconf("SC_CLK_TCK"), 60)
    # One virtual processor, whatever it does, is one processor of the host and the monitor's own share.
    assert (ticks() - used) / os.sysconf("SC_CLK_TCK") <= (time.monotonic() - begin) * 1.6
    killed = server.call("POST", f"/v1/sandboxes/{pair[0]}/processes/{busy.json['pid']}/kill")
    assert killed.status == 204, killed
