"""What a sandbox reaches and what it does not, against an internet of the test's own in which all that arrives is written down.

The guest is hostile here: its root tries. What is denied must not arrive, must be listed, and must not depend on anything inside.
"""

import contextlib
import json
import threading

import pytest
from nullspace import Sandbox

import internet as net
import node_disk
from appliance import until
from internet import BAD, GOOD, HOST, LONELY, RESOLVER, SHARED, Internet

GATEWAY = "10.200.0.1"


@pytest.fixture(scope="module")
def internet(workspace):
    made = Internet(workspace / "internet")
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(module_server, internet):
    """A server whose sandboxes live in that internet."""
    return module_server(config=internet.config())


@pytest.fixture
def sandbox(server):
    """Makes sandboxes: sandbox(network) is an ID."""
    made = []

    def make(network: dict | None = None, **more) -> str:
        made.append(server.create(**more | ({"network": network} if network is not None else {})))
        return made[-1]

    yield make
    for one in made:
        server.destroy(one)


def get(server, sandbox: str, url: str, *words: str) -> str:
    """What curl in the sandbox gets: the answer's status, or `no` and its own exit status."""
    done = server.exec(sandbox, "curl", "-s", "-m", "8", "-o", "/tmp/answer", "-w", "%{http_code}", *words, url)
    return done["stdout"] if done["exit_code"] == 0 else f"no {done['exit_code']}"


def reaches(server, sandbox: str, url: str, *words: str) -> bool:
    got = get(server, sandbox, url, *words)
    assert got == "200" or got.startswith("no"), got
    return got == "200"


def pinned(name: str, address: str, port: int = 443) -> tuple[str, ...]:
    """Goes to an address with a name, whatever DNS says of it."""
    return ("-k", "--resolve", f"{name}:{port}:{address}")


def denied(server, sandbox: str, **like) -> list[dict]:
    page = server.done(200, "GET", f"/v1/sandboxes/{sandbox}/network/denied", query={"limit": 200})
    return [one for one in page["items"] if all(one[k] == v for k, v in like.items())]


def is_listed(server, sandbox: str, **like) -> dict:
    return until(f"{like} is listed as denied", lambda: denied(server, sandbox, **like), 20)[0]


def patch(server, sandbox: str, **change) -> dict:
    return server.done(200, "PATCH", f"/v1/sandboxes/{sandbox}/network", change)


# ---- addresses ------------------------------------------------------------------------------------


def test_without_rules_a_sandbox_reaches_the_internet_by_name_and_address(server, sandbox):
    one = sandbox()
    assert reaches(server, one, "http://good.test/") and reaches(server, one, f"http://{BAD}/")
    assert reaches(server, one, "https://good.test/", "-k")


@pytest.mark.parametrize(("network", "open_to", "closed_to", "reason"), [
    ({"deny_out": [f"{BAD}/32"]}, GOOD, BAD, "denied_address"),
    ({"deny_out": ["0.0.0.0/0"], "allow_out": [f"{GOOD}/32"]}, GOOD, BAD, "denied_address"),
    ({"deny_out": ["198.51.100.0/24"], "allow_out": ["198.51.100.8/29"]}, GOOD, LONELY, "denied_address"),
])
def test_ranges_are_denied_and_allowed_ones_win(server, sandbox, internet, network, open_to, closed_to, reason):
    one, before = sandbox(network), internet.mark()
    assert reaches(server, one, f"http://{open_to}/") and not reaches(server, one, f"http://{closed_to}/")
    assert not internet.arrived(before, address=closed_to)
    listed = is_listed(server, one, protocol="tcp", address=closed_to, port=80, reason=reason)
    assert listed["count"] >= 1 and listed["first_at"] <= listed["last_at"]


def test_without_internet_access_nothing_is_reached_and_no_name_is_resolved(server, sandbox, internet):
    one, before = sandbox(internet_access=False), internet.mark()
    assert not reaches(server, one, f"http://{GOOD}/") and not reaches(server, one, "http://good.test/")
    assert not internet.arrived(before)
    two = sandbox({"allow_out": [f"{GOOD}/32"]}, internet_access=False)
    assert reaches(server, two, f"http://{GOOD}/") and not reaches(server, two, f"http://{BAD}/")


def test_the_unmodified_client_sets_the_rules(server, internet, monkeypatch):
    monkeypatch.setenv("NULLSPACE_API_URL", server.url)
    monkeypatch.setenv("NULLSPACE_API_KEY", server.key)
    with Sandbox.create(timeout=300, network={"deny_out": ["0.0.0.0/0"], "allow_out": [f"{GOOD}/32"]}) as sandbox:
        assert sandbox.commands.run(f"curl -s -m 8 http://{GOOD}/", shell=True).exit_code == 0
        assert reaches(server, sandbox.id, f"http://{GOOD}/") and not reaches(server, sandbox.id, f"http://{BAD}/")


# ---- names ----------------------------------------------------------------------------------------


def test_allowed_names_are_the_only_ones(server, sandbox, internet):
    one, before = sandbox({"allow_domains": ["good.test", "*.shared.test"]}), internet.mark()
    assert reaches(server, one, "https://good.test/", "-k") and reaches(server, one, "http://good.test/")
    assert reaches(server, one, "https://one.shared.test/", "-k")
    for url in ("http://bad.test/", "https://bad.test/", "http://www.good.test/", f"http://{BAD}/"):
        assert not reaches(server, one, url, "-k"), url
    assert not internet.arrived(before, address=BAD)
    assert not internet.arrived(before, service="dns", name="bad.test"), "the question itself would carry data out"
    is_listed(server, one, protocol="dns", name="bad.test", reason="name_not_allowed")


def test_a_name_is_believed_only_for_the_addresses_that_dns_gives_for_it(server, sandbox, internet):
    """An allowed name at another address; an address alone; a name that DNS gives elsewhere; no name at all."""
    one, before = sandbox({"allow_domains": ["good.test"]}), internet.mark()
    assert not reaches(server, one, "https://good.test/", *pinned("good.test", BAD))
    assert not reaches(server, one, "http://good.test/", *pinned("good.test", BAD, 80))
    assert not reaches(server, one, f"https://{GOOD}/", "-k")
    assert not reaches(server, one, f"http://{GOOD}/")
    assert not internet.arrived(before, service="https") and not internet.arrived(before, service="http")
    is_listed(server, one, address=BAD, name="good.test", reason="name_mismatch")
    is_listed(server, one, address=GOOD, port=443, reason="no_name")


def test_a_second_name_on_the_same_address_is_another_name(server, sandbox, internet):
    one, before = sandbox({"allow_domains": ["one.shared.test"]}), internet.mark()
    assert reaches(server, one, "https://one.shared.test/", "-k")
    assert not reaches(server, one, "https://two.shared.test/", *pinned("two.shared.test", SHARED))
    assert not reaches(server, one, "http://two.shared.test/", *pinned("two.shared.test", SHARED, 80))
    # The allowed name in the address and the other one in the Host.
    assert not reaches(server, one, "http://one.shared.test/", "-H", "Host: two.shared.test")
    assert {seen["host"] for seen in internet.arrived(before) if seen["service"] in ("http", "https")} == {"one.shared.test"}
    is_listed(server, one, address=SHARED, name="two.shared.test", reason="name_not_allowed")


def test_a_request_to_another_host_on_an_allowed_connection_does_not_arrive(server, sandbox, internet):
    one, before = sandbox({"allow_domains": ["one.shared.test"]}), internet.mark()
    program = (
        "import socket\n"
        "s = socket.create_connection((socket.gethostbyname('one.shared.test'), 80), 8)\n"
        "s.sendall(b'GET /1 HTTP/1.1\\r\\nHost: one.shared.test\\r\\n\\r\\nGET /2 HTTP/1.1\\r\\nHost: two.shared.test\\r\\n\\r\\n')\n"
        "s.settimeout(8)\n"
        "got = b''\n"
        "try:\n"
        "    while data := s.recv(4096): got += data\n"
        "except OSError: pass\n"
        "print(got.count(b'HTTP/1.1 200'))\n")
    server.out(one, "python3", "-c", program)
    assert [seen["path"] for seen in internet.arrived(before, service="http")] in ([], ["/1"])


def test_denied_names_are_denied_and_others_are_not(server, sandbox, internet):
    one, before = sandbox({"deny_domains": ["bad.test", "*.shared.test"]}), internet.mark()
    assert reaches(server, one, "https://good.test/", "-k")
    assert not reaches(server, one, "https://bad.test/", "-k") and not reaches(server, one, "http://one.shared.test/")
    assert not reaches(server, one, "https://bad.test/", *pinned("bad.test", BAD)), "by its address"
    assert not reaches(server, one, f"https://{BAD}/", "-k"), "without a name"
    assert not reaches(server, one, "https://good.test/", *pinned("good.test", BAD)), "under another name"
    assert not [seen for seen in internet.arrived(before) if seen["service"] in ("http", "https") and seen["address"] in (BAD, SHARED)]


def test_udp_and_other_resolvers_lead_around_nothing(server, sandbox, internet):
    one, before = sandbox({"allow_domains": ["good.test"]}), internet.mark()
    program = (
        "import socket\n"
        f"for target in (('{GOOD}', {net.DATAGRAM}), ('{RESOLVER}', 53)):\n"
        "    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2)\n"
        "    try: s.sendto(b'\\x12\\x34\\x01\\x00\\x00\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x03bad\\x04test\\x00\\x00\\x01\\x00\\x01', target); print(s.recv(512))\n"
        "    except OSError as e: print('no')\n")
    assert server.out(one, "python3", "-c", program).split() == ["no", "no"]
    assert not internet.arrived(before)
    is_listed(server, one, protocol="udp", address=RESOLVER, port=53)


# ---- what is never reached ------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["169.254.169.254", "10.0.0.1", "192.168.1.1", "172.16.0.1", "100.64.0.1", "127.0.0.1", HOST])
def test_protected_addresses_are_never_reached_even_when_they_are_allowed(server, protected, address):
    done = server.exec(protected, "curl", "-s", "-m", "4", f"http://{address}/")
    assert done["exit_code"] != 0
    if address != "127.0.0.1":  # its own
        is_listed(server, protected, address=address, reason="protected_address")


@pytest.fixture(scope="module")
def protected(server):
    one = server.create(network={"allow_out": ["0.0.0.0/0"]}, timeout_ms=600_000)
    yield one
    server.destroy(one)


def test_root_in_a_guest_reaches_neither_the_server_nor_other_sandboxes(server, protected):
    """The API, the gateway, the relay, the node's own DNS at other ports, the other machine's address."""
    other = server.create()
    server.background(other, "python3 -m http.server 8000")
    port = int(server.url.rsplit(":", 1)[1])
    program = (
        "import socket\n"
        "def reach(a, p):\n"
        "    try: socket.create_connection((a, p), 2).close(); return True\n"
        "    except OSError: return False\n"
        f"print([(a, p) for a in ('{GATEWAY}', '{HOST}', '10.201.0.1', '10.201.0.2', '10.201.0.5', '10.201.0.6') for p in ({port}, 3022, 8000, 22, 7000, 7001) if reach(a, p)])\n")
    assert server.out(protected, "python3", "-c", program) == "[]"
    server.destroy(other)


def test_raw_packets_with_another_source_go_nowhere_and_are_listed(server, sandbox, internet):
    one, before = sandbox(), internet.mark()
    program = (
        "import socket, struct\n"
        "def checksum(b):\n"
        "    s = sum(struct.unpack('!%dH' % (len(b) // 2), b)); s = (s >> 16) + (s & 0xffff); return ~(s + (s >> 16)) & 0xffff\n"
        f"source, target, data = '203.0.113.9', '{GOOD}', b'forged!!'\n"
        f"udp = struct.pack('!HHHH', 1234, {net.DATAGRAM}, 8 + len(data), 0) + data\n"
        "head = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, socket.inet_aton(source), socket.inet_aton(target))\n"
        "head = head[:10] + struct.pack('!H', checksum(head)) + head[12:]\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)\n"
        "for _ in range(3): s.sendto(head + udp, (target, 0))\n"
        "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.settimeout(5); "
        f"u.sendto(b'honest', (target, {net.DATAGRAM})); print(u.recv(100).decode())\n")
    assert server.out(one, "python3", "-c", program) == "honest"
    assert [seen["data"] for seen in internet.arrived(before, service="udp")] == ["honest"]
    is_listed(server, one, reason="forged_source")


def test_arp_and_dhcp_tricks_change_nothing_for_it_or_for_others(server, sandbox, internet):
    """A guest that claims its gateway's, its neighbours' and its own address for another card, and asks for a lease."""
    one, other = sandbox(), sandbox()
    program = (
        "import socket, struct\n"
        "card = next(name for _, name in socket.if_nameindex() if name != 'lo')\n"
        "s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)); s.bind((card, 0)); s.settimeout(1)\n"
        "forged, everyone = bytes.fromhex('020000000066'), b'\\xff' * 6\n"
        f"for claimed in ('{GATEWAY}', '10.200.0.2', '10.201.0.1', '{HOST}', '{GOOD}'):\n"
        "    for kind in (1, 2):\n"
        "        a = socket.inet_aton(claimed)\n"
        "        s.send(everyone + forged + struct.pack('!HHHBBH', 0x806, 1, 0x800, 6, 4, kind) + forged + a + everyone + a)\n"
        "discover = struct.pack('!BBBBIHH16s6s202sI', 1, 1, 6, 0, 77, 0, 0x8000, b'', forged, b'', 0x63825363) + b'\\x35\\x01\\x01\\xff'\n"
        "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)\n"
        "u.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, card.encode()); u.bind(('', 68)); u.settimeout(2)\n"
        "u.sendto(discover, ('255.255.255.255', 67))\n"
        "try: print('offered', u.recv(600))\n"
        "except OSError: print('nothing')\n")
    assert server.out(one, "python3", "-c", program) == "nothing", "nobody gives leases here"
    for each in (one, other):
        assert server.out(each, "echo there") == "there" and reaches(server, each, f"http://{GOOD}/")


def test_questions_to_dns_are_bounded(server, sandbox, internet):
    one, before = sandbox(), internet.mark()
    program = (
        "import socket, struct\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "for n in range(3000):\n"
        "    label = ('x%d' % n).encode()\n"
        f"    s.sendto(struct.pack('!HHHHHH', n, 0x100, 1, 0, 0, 0) + bytes([len(label)]) + label + b'\\x04leak\\x04test\\0\\0\\1\\0\\1', ('{GATEWAY}', 53))\n")
    server.out(one, "python3", "-c", program)
    is_listed(server, one, protocol="dns", reason="limit")
    assert len(internet.arrived(before, service="dns")) < 2000
    assert until("honest questions are answered again", lambda: reaches(server, one, "http://good.test/"), 20)


# ---- changes and descent --------------------------------------------------------------------------


def test_a_change_holds_at_once_for_what_is_open_too(server, sandbox, internet):
    one = sandbox()
    program = (
        "import socket, time\n"
        f"s = socket.create_connection(('{BAD}', {net.ECHO}), 8); s.settimeout(3)\n"
        "while True:\n"
        "    try:\n"
        "        s.sendall(b'x'); ok = s.recv(1) == b'x'\n"
        "    except OSError: ok = False\n"
        "    print('open' if ok else 'cut', flush=True)\n"
        "    if not ok: break\n"
        "    time.sleep(0.05)\n")
    pid = server.background(one, "python3", "-c", program)

    def said() -> str:
        return server.done(200, "GET", f"/v1/sandboxes/{one}/processes/{pid}/logs")["stdout"]

    until("it is connected", lambda: "open" in said(), 30)
    shown = patch(server, one, deny_out=[f"{BAD}/32"])
    assert shown["deny_out"] == [f"{BAD}/32"] and shown["internet_access"] is True
    assert not reaches(server, one, f"http://{BAD}/")
    until("what was open is cut", lambda: "cut" in said(), 30)
    patch(server, one, deny_out=[])
    assert reaches(server, one, f"http://{BAD}/")
    patch(server, one, internet_access=False)
    assert not reaches(server, one, f"http://{GOOD}/")
    assert server.done(200, "GET", f"/v1/sandboxes/{one}/network")["internet_access"] is False


def test_rules_survive_hibernation_forks_snapshots_and_a_restart(server, sandbox, internet):
    """A guest that sends all the time sends from the first instruction of each of these lives."""
    network = {"deny_out": [f"{BAD}/32"], "allow_domains": ["good.test"]}
    one = sandbox(network)
    program = (
        "import socket\n"
        "while True:\n"
        "    s = socket.socket(); s.settimeout(0.2)\n"
        f"    try: s.connect(('{BAD}', {net.ECHO}))\n"
        "    except OSError: pass\n"
        "    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        f"    try: u.sendto(b'sent', ('{BAD}', {net.DATAGRAM}))\n"
        "    except OSError: pass\n")
    before = internet.mark()
    server.background(one, "python3", "-c", program)
    is_listed(server, one, protocol="udp", address=BAD)
    [child] = server.fork(one)
    snapshot = server.snapshot(one)
    copy = server.done(201, "POST", "/v1/sandboxes", {"snapshot_id": snapshot})["id"]
    server.hibernate(one)
    server.resume(one)
    for each in (one, child, copy):
        is_listed(server, each, protocol="udp", address=BAD)
        assert reaches(server, each, "https://good.test/", "-k") and not reaches(server, each, "http://bad.test/")
    server.kill()
    server.start()
    for each in (one, child, copy):
        assert reaches(server, each, "https://good.test/", "-k") and not reaches(server, each, "http://bad.test/")
    assert not internet.arrived(before, address=BAD), "not one packet of any of their lives"
    for each in (child, copy):
        server.destroy(each)
    server.done(204, "DELETE", f"/v1/snapshots/{snapshot}")


def test_a_new_sandbox_with_many_rules_sends_nothing_before_they_hold(server, internet):
    """The spare that it is made of runs before; what it was told by its template's hook must not pass either."""
    before = internet.mark()
    rules = [f"198.51.{n}.0/24" for n in range(200)]
    one = server.create(network={"deny_out": rules})
    assert not reaches(server, one, f"http://{GOOD}/") and not internet.arrived(before)
    server.destroy(one)


def test_limits_hold(server, sandbox, internet):
    one = sandbox({"limits": {"connections_max": 5}})
    program = (
        "import socket\n"
        "held = []\n"
        "for _ in range(12):\n"
        "    s = socket.socket(); s.settimeout(2)\n"
        "    try:\n"
        f"        s.connect(('{GOOD}', {net.ECHO})); s.sendall(b'x'); s.recv(1); held.append(s)\n"
        "    except OSError: pass\n"
        "print(len(held))\n")
    assert server.out(one, "python3", "-c", program) == "5"
    is_listed(server, one, reason="limit")


# ---- secrets --------------------------------------------------------------------------------------


SECRET = "s3cr3t-value-that-nobody-sees"


@pytest.fixture(scope="module")
def secret(server):
    made = server.done(201, "POST", "/v1/secrets", {"name": "api-key", "value": SECRET})
    assert made["name"] == "api-key" and SECRET not in json.dumps(made)
    yield "api-key"
    server.done(204, "DELETE", "/v1/secrets/api-key")


def test_a_secret_is_added_on_the_way_and_never_seen_inside(server, sandbox, internet, secret):
    rule = {"host": "api.test", "header": "Authorization", "secret": secret, "format": "Bearer ${secret}"}
    one, before = sandbox({"inject": [rule]}), internet.mark()
    # Without -k: the guest trusts the node's authority, for this host.
    assert get(server, one, "https://api.test/with", "-H", "Authorization: Bearer placeholder") == "200"
    assert get(server, one, "https://api.test/without", "--http1.1") == "200"
    assert get(server, one, "https://www.good.test/other", "-k", "-H", "Authorization: Bearer placeholder") == "200"
    seen = {one["path"]: one["headers"].get("authorization") for one in internet.arrived(before, service="https")}
    assert seen == {"/with": f"Bearer {SECRET}", "/without": f"Bearer {SECRET}", "/other": "Bearer placeholder"}
    python = "import urllib.request; print(urllib.request.urlopen('https://api.test/python', timeout=15).status)"
    assert server.out(one, "python3", "-c", python) == "200"
    [child] = server.fork(one)
    assert get(server, child, "https://api.test/child") == "200"
    for each in (one, child):
        searched = server.exec(each, f"env | grep -c {SECRET}; grep -rlsI {SECRET} /etc /tmp /run /root /home /workspace /usr/local || true")
        assert searched["stdout"].split() == ["0"], searched
    server.destroy(child)
    for place, file in node_disk.files(server.data_dir):
        if file.st_size <= 64 << 20:
            with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                assert SECRET.encode() not in place.read_bytes(), place
    assert SECRET not in server.text()


def test_a_secret_goes_only_where_the_name_is_proved(server, sandbox, internet, secret):
    rule = [{"host": host, "header": "x-key", "secret": secret} for host in ("api.test", "wrong.test")]
    one, before = sandbox({"inject": rule}), internet.mark()
    assert get(server, one, "https://api.test/", "--resolve", f"api.test:443:{BAD}") != "200", "another address"
    assert get(server, one, "http://api.test/") != "200", "in the clear"
    assert get(server, one, "https://wrong.test/") in ("502", "no 56", "no 35"), "a certificate of another name"
    assert not [seen for seen in internet.arrived(before) if "x-key" in seen.get("headers", {})]
    is_listed(server, one, reason="injection_failed")


def test_a_secret_that_is_gone_is_used_no_more(server, sandbox, internet):
    server.done(201, "POST", "/v1/secrets", {"name": "brief", "value": "here"})
    one = sandbox({"inject": [{"host": "api.test", "header": "x-key", "secret": "brief"}]})
    assert get(server, one, "https://api.test/") == "200"
    server.done(204, "DELETE", "/v1/secrets/brief")
    assert until("it is refused", lambda: get(server, one, "https://api.test/") == "502", 20)
    answer = server.call("POST", "/v1/sandboxes", {"network": {"inject": [{"host": "api.test", "header": "x-key", "secret": "brief"}]}})
    assert answer.code == "secret_not_found", answer


def test_after_a_kill_the_secret_is_added_again(server, sandbox, internet, secret):
    one = sandbox({"inject": [{"host": "api.test", "header": "x-key", "secret": secret}]})
    assert get(server, one, "https://api.test/before") == "200"
    server.kill()
    server.start()
    before = internet.mark()
    assert until("it is added again", lambda: get(server, one, "https://api.test/after") == "200", 30)
    assert {seen["headers"]["x-key"] for seen in internet.arrived(before, path="/after")} == {SECRET}


def test_secrets_are_listed_without_values_and_refused_with_reasons(server, secret):
    listed = server.done(200, "GET", "/v1/secrets")["items"]
    assert [set(one) for one in listed] == [{"name", "created_at"}] and SECRET not in json.dumps(listed)
    for body, code in (({"name": "api-key", "value": "x"}, "conflict"), ({"name": "a b", "value": "x"}, "invalid_request"),
                       ({"name": "x", "value": "new\nline"}, "invalid_request"), ({"name": "x"}, "invalid_request")):
        assert server.call("POST", "/v1/secrets", body).code == code, body
    assert server.call("DELETE", "/v1/secrets/none").code == "secret_not_found"


# ---- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("network", "names"), [
    ({"deny_out": ["10.0.0.1/8"]}, "network.deny_out"), ({"allow_out": ["::/0"]}, "network.allow_out"), ({"allow_domains": ["a b"]}, "network.allow_domains"),
    ({"nonsense": 1}, "nonsense"), ({"allow_public_traffic": "x"}, "network.allow_public_traffic"), ({"limits": {"connections_max": 0}}, "connections_max"),
    ({"inject": [{"host": "a.test", "header": "host", "secret": "api-key"}]}, "network.inject"), ({"mask_request_host": ""}, "network.mask_request_host"),
])
def test_settings_that_make_no_sense_are_refused_and_change_nothing(server, protected, network, names):
    count, before = len(server.listed()), server.done(200, "GET", f"/v1/sandboxes/{protected}/network")
    for answer in (server.call("POST", "/v1/sandboxes", {"network": network}), server.call("PATCH", f"/v1/sandboxes/{protected}/network", network)):
        assert answer.code == "invalid_request" and names in answer.json["error"], answer
    assert len(server.listed()) == count and server.done(200, "GET", f"/v1/sandboxes/{protected}/network") == before


def test_changes_that_come_together_leave_one_of_them_whole(server, sandbox):
    one = sandbox()
    rules = [{"deny_out": [f"203.0.113.{n}/32"], "allow_domains": [f"a{n}.test"]} for n in range(8)]
    threads = [threading.Thread(target=patch, args=(server, one), kwargs=rule) for rule in rules]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shown = server.done(200, "GET", f"/v1/sandboxes/{one}/network")
    assert {k: shown[k] for k in ("deny_out", "allow_domains")} in rules


# ---- through a tunnel -----------------------------------------------------------------------------


def test_the_tunnel_helper_works_with_a_shadowsocks_server(server, internet, monkeypatch, tmp_path):
    """As the client's page has it: its environment, a local proxy made of it inside, and all traffic through that."""
    monkeypatch.setenv("NULLSPACE_API_URL", server.url)
    monkeypatch.setenv("NULLSPACE_API_KEY", server.key)
    tunnel = internet.enter("ss-server", "-s", LONELY, "-p", "8388", "-k", "password", "-m", "aes-256-gcm")
    try:
        envs = Sandbox.enable_tunnel(LONELY, "password")
        network = {"deny_out": ["0.0.0.0/0"], "allow_out": [f"{LONELY}/32"]}
        with Sandbox.create(timeout=600, envs=envs, network=network) as sandbox:
            carry(sandbox, "ss-local", tmp_path)
            sandbox.commands.run(
                "cd /opt/carried && LD_LIBRARY_PATH=. ./ss-local -s $SS_SERVER -p $SS_SERVER_PORT -k $SS_PASSWORD -m $SS_METHOD -b 127.0.0.1 -l 1080",
                background=True, shell=True)
            until("the local proxy answers", lambda: sandbox.commands.run("curl -s -m 5 -x socks5h://127.0.0.1:1080 http://%s/through" % GOOD, shell=True).exit_code == 0, 60)
            assert internet.arrived(path="/through")
            assert sandbox.commands.run(f"curl -s -m 5 http://{GOOD}/", shell=True).exit_code != 0, "and nothing around it"
    finally:
        tunnel.terminate()
        tunnel.wait()


def carry(sandbox, program: str, place):
    """Takes a program of this host, with the libraries that it needs, into a sandbox."""
    import shutil
    import subprocess

    source = shutil.which(program)
    carried = place / "carried"
    carried.mkdir()
    shutil.copy(source, carried / program)
    for line in subprocess.run(["ldd", source], capture_output=True, text=True, check=True).stdout.splitlines():
        words = line.split()
        if "=>" in words and not words[0].startswith(("libc.", "ld-linux", "libm.", "libpthread")):
            shutil.copy(words[2], carried / words[0])
    sandbox.files.upload_dir(str(carried), "/opt/carried")
    assert sandbox.commands.run(f"chmod 0755 /opt/carried/{program}", shell=True).exit_code == 0
