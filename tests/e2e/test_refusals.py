"""Bad input, over plain HTTP: every refusal has its status, its stable code, and names what was wrong."""

import json
import socket
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from appliance import Http, until


def refused(answer, status, code, *words):
    """Checks the envelope of a refusal, whatever it refuses."""
    assert answer.status == status, answer
    body = answer.json
    assert isinstance(body, dict) and body["code"] == code, answer
    assert answer.headers["content-type"].startswith("application/json")
    assert isinstance(body["error"], str) and body["error"]
    assert body["request_id"] and answer.headers["x-request-id"] == body["request_id"]
    assert "error_detail" not in body or body["error_detail"] is None  # the public client decodes it strictly
    for word in words:
        assert str(word) in body["error"], answer
    return body


# ---- what a create may not be ----------------------------------------------------------


@pytest.mark.parametrize("body", [b"{", b"", b"nonsense", b"[]", b'"base"', b'{"vcpus": 1,}', b"\xff\xfe", b'{"template": "\xff"}'])
def test_a_body_that_is_no_json_object_is_refused(server, body):
    refused(server.call("POST", "/v1/sandboxes", body, headers={"Content-Type": "application/json"}), 400, "invalid_request")


@pytest.mark.parametrize("field, value", [
    ("vcpus", "two"), ("vcpus", 1.5), ("memory_mb", []), ("disk_mb", {}), ("timeout_ms", "soon"), ("template", 7), ("envs", []),
    ("envs", {"A": 1}), ("metadata", "text"), ("internet_access", "yes"), ("cwd", 1), ("timeout_action", "explode"), ("lifecycle", {"on_timeout": "x"}),
])
def test_a_wrong_type_is_refused_by_the_fields_name(server, field, value):
    refused(server.call("POST", "/v1/sandboxes", {field: value}), 400, "invalid_request", field)


@pytest.mark.parametrize("field, low, high, value", [
    ("vcpus", 1, 8, 0), ("vcpus", 1, 8, 9), ("vcpus", 1, 8, -1), ("memory_mb", 256, 65536, 255), ("memory_mb", 256, 65536, 65537),
    ("disk_mb", 512, 131072, 511), ("disk_mb", 512, 131072, 131073), ("timeout_ms", 1, 2592000000, 0), ("timeout_ms", 1, 2592000000, 2592000001),
    ("memory_mb", 256, 65536, 1 << 62),
])
def test_a_size_out_of_bounds_is_refused_with_its_name_and_both_bounds(server, field, low, high, value):
    refused(server.call("POST", "/v1/sandboxes", {field: value}), 400, "invalid_request", field, low, high)


@pytest.mark.parametrize("field, value", [
    ("cwd", "relative"), ("cwd", "/workspace/.nullspace"), ("cwd", "/a\0b"), ("envs", {"": "x"}), ("envs", {"A=B": "x"}), ("envs", {"A": "x\0"}),
])
def test_a_value_that_no_guest_could_have_is_refused(server, field, value):
    refused(server.call("POST", "/v1/sandboxes", {field: value}), 400, "invalid_request", field)


def test_an_unknown_template_is_not_found(server):
    refused(server.call("POST", "/v1/sandboxes", {"template": "no-such-template"}), 404, "template_not_found", "no-such-template")


@pytest.mark.parametrize("field, value", [
    ("volumes", [{"ref": "data", "mount_path": "/data", "read_only": False}]), ("warm_pool", {"mode": "prefer"}),
])
def test_a_feature_that_is_not_there_yet_says_so(server, field, value):
    refused(server.call("POST", "/v1/sandboxes", {field: value}), 501, "not_implemented")


@pytest.mark.parametrize("more, word", [
    ({"auto_resume": True}, "auto_resume"), ({"auto_resume": True, "timeout_action": "destroy"}, "auto_resume"),
    ({"timeout_action": "destroy", "lifecycle": {"on_timeout": "pause"}}, "on_timeout"),
])
def test_a_lifecycle_that_contradicts_itself_is_refused(server, more, word):
    refused(server.call("POST", "/v1/sandboxes", more), 400, "invalid_request", word)


@pytest.mark.parametrize("field, value", [
    ("vcpus", 1), ("memory_mb", 256), ("disk_mb", 4096), ("template", "base"), ("envs", {"A": "1"}), ("cwd", "/tmp"), ("internet_access", False),
])
def test_what_a_snapshot_has_cannot_be_asked_for_beside_it(server, field, value):
    refused(server.call("POST", "/v1/sandboxes", {"snapshot_id": "snap_" + "0" * 32, field: value}), 400, "invalid_request", field)


def test_an_unknown_snapshot_is_not_found(server):
    missing = "snap_" + "0" * 32
    for method, path, body in (("POST", "/v1/sandboxes", {"snapshot_id": missing}), ("GET", f"/v1/snapshots/{missing}", None),
                               ("DELETE", f"/v1/snapshots/{missing}", None), ("POST", f"/v1/sandboxes/{missing}/resume", None)):
        refused(server.call(method, path, body), 404, "snapshot_not_found", missing)


@pytest.mark.parametrize("body", [{"count": 0}, {"count": 65}, {"count": -1}, {"count": "two"}, {"count": 1.5}, [], "x"])
def test_a_fork_asked_wrongly_names_the_field_and_makes_nothing(server, sandbox, body):
    before = server.done(200, "GET", f"/v1/sandboxes/{sandbox}/tree")
    refused(server.call("POST", f"/v1/sandboxes/{sandbox}/fork", body), 400, "invalid_request", *(["count"] if isinstance(body, dict) else []))
    assert server.done(200, "GET", f"/v1/sandboxes/{sandbox}/tree") == before


def test_null_and_unknown_fields_are_as_good_as_absent(server):
    made = server.create(network=None, cwd=None, volumes=None, desktop=None, disk_mb=None, from_the_future={"x": 1})
    server.destroy(made)


def test_a_body_too_large_is_refused_and_the_connection_survives_or_closes_cleanly(server, sandbox):
    large = json.dumps({"metadata": {"x": "y" * (5 << 20)}}).encode()
    refused(_send_large(server, "POST", "/v1/sandboxes", large), 413, "payload_too_large")
    huge = json.dumps({"path": "/tmp/huge", "content": "y" * (65 << 20)}).encode()
    refused(_send_large(server, "POST", f"/v1/sandboxes/{sandbox}/files/write", huge), 413, "payload_too_large")
    assert server.call("GET", f"/v1/sandboxes/{sandbox}").status == 200


def _send_large(server, method, path, body):
    connection = server.http()
    try:
        return connection(method, path, body, headers={"Content-Type": "application/json"})
    finally:
        connection.close()


# ---- who asks --------------------------------------------------------------------------


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Bearer nonsense", "Basic bnM6bnM=", "Bearer ns_live_" + "0" * 40, "Bearer \xff\xfe", "Bearer a b"])
def test_a_missing_malformed_or_unknown_key_is_unauthorized(server, header):
    headers = {"Authorization": header} if header is not None else {}
    for method, path in (("GET", "/v1/sandboxes"), ("POST", "/v1/sandboxes"), ("GET", "/v1/templates"), ("GET", f"/v1/sandboxes/sb_{'0' * 32}"),
                         ("POST", "/v1/sandboxes/x/hibernate")):
        refused(server.call(method, path, {} if method == "POST" else None, headers=headers, key=None), 401, "unauthorized")


def test_health_needs_no_key(server):
    assert server.call("GET", "/healthz", key=None).json["status"] == "ok"


def test_a_revoked_key_stops_working_at_once_and_the_others_go_on(server):
    created = json.loads(server.keys("create", "--tenant", "short-lived", "--json"))
    secret, key_id = created["secret"], created["id"]
    assert server.call("GET", "/v1/sandboxes", key=secret).json == []
    assert secret not in server.keys("list", "--json")
    server.keys("revoke", key_id)
    until("the key is refused", lambda: server.call("GET", "/v1/sandboxes", key=secret).status == 401, 10)
    assert server.call("GET", "/v1/sandboxes").status == 200
    assert secret not in server.text() and server.key not in server.text()


def test_tenants_never_see_each_other(server, sandbox):
    other = json.loads(server.keys("create", "--tenant", "other", "--json"))["secret"]
    theirs = server.call("POST", "/v1/sandboxes", {"metadata": {"whose": "other"}}, key=other)
    assert theirs.status == 201, theirs
    theirs = theirs.json["id"]
    try:
        assert [s["id"] for s in server.call("GET", "/v1/sandboxes", key=other).json] == [theirs]
        assert theirs not in {s["id"] for s in server.listed()}
        missing = "sb_" + uuid.uuid4().hex
        for method, path, body in (
            ("GET", "", None), ("DELETE", "", None), ("GET", "/metrics", None), ("POST", "/timeout", {"timeout_ms": 1000}),
            ("POST", "/hibernate", None), ("POST", "/resume", None), ("POST", "/snapshots", None), ("POST", "/fork", None), ("GET", "/tree", None),
            ("GET", "/lifecycle", None),
            ("POST", "/exec", {"command": "true"}), ("GET", "/processes", None), ("POST", "/processes/1/kill", None), ("GET", "/processes/1/logs", None),
            ("GET", "/files?path=/", None), ("POST", "/files/read", {"path": "/etc/hostname"}), ("POST", "/files/exists", {"path": "/"}),
            ("POST", "/files/write", {"path": "/tmp/x", "content": ""}), ("GET", "/file?path=/etc/hostname", None),
        ):
            # A foreign ID answers exactly like a missing one.
            foreign = refused(server.call(method, f"/v1/sandboxes/{theirs}{path}", body), 404, "sandbox_not_found")
            absent = refused(server.call(method, f"/v1/sandboxes/{missing}{path}", body), 404, "sandbox_not_found")
            assert foreign["error"].replace(theirs, "ID") == absent["error"].replace(missing, "ID")
        assert server.call("GET", f"/v1/sandboxes/{theirs}", key=other).json["status"] == "running"
        # Nor through an idempotency key of the same name.
        key = {"Idempotency-Key": uuid.uuid4().hex}
        mine, made = (server.call("POST", "/v1/sandboxes", {}, headers=key, key=k) for k in (server.key, other))
        assert mine.status == made.status == 201 and mine.json["id"] != made.json["id"]
        server.destroy(mine.json["id"])
        assert server.call("DELETE", f"/v1/sandboxes/{made.json['id']}", key=other).status == 200
    finally:
        assert server.call("DELETE", f"/v1/sandboxes/{theirs}", key=other).status == 200


# ---- where ------------------------------------------------------------------------------


def test_a_destroyed_sandbox_is_not_found(server):
    gone = server.create()
    assert server.call("DELETE", f"/v1/sandboxes/{gone}").json == {"id": gone, "status": "destroyed"}
    refused(server.call("GET", f"/v1/sandboxes/{gone}"), 404, "sandbox_not_found", gone)
    refused(server.call("POST", f"/v1/sandboxes/{gone}/exec", {"command": "true"}), 404, "sandbox_not_found")
    refused(server.call("DELETE", f"/v1/sandboxes/{gone}"), 404, "sandbox_not_found")


@pytest.mark.parametrize("wrong", ["nonsense", "snap_" + "0" * 32, "sb_", "sb_XYZ", "..%2f..", "sb_" + "0" * 3000])
def test_an_id_that_is_none_is_not_found(server, wrong):
    answer = server.call("GET", f"/v1/sandboxes/{wrong}")
    assert (answer.status, answer.code) in ((404, "sandbox_not_found"), (400, "invalid_request")), answer


def test_unknown_routes_and_methods_answer_json(server):
    refused(server.call("GET", "/v1/nothing/here"), 404, "not_found")
    refused(server.call("GET", "/nothing"), 404, "not_found")
    refused(server.call("PATCH", "/v1/sandboxes"), 405, "method_not_allowed")
    answer = server.call("GET", "/v1/sandboxes/")  # never a redirect
    assert answer.status == 404, answer


@pytest.mark.parametrize("method, path", [
    ("PATCH", "/v1/sandboxes/{sb}/egress"), ("GET", "/v1/volumes"),
])
def test_routes_of_the_contract_that_are_not_there_yet_say_so(server, sandbox, method, path):
    refused(server.call(method, path.format(sb=sandbox)), 501, "not_implemented")


def test_the_template_is_listed_under_its_name(server):
    answer = server.call("GET", "/v1/templates")
    assert answer.status == 200, answer
    items = answer.json if isinstance(answer.json, list) else answer.json["items"]
    assert ("base", "base") in {(t["id"], t["name"]) for t in items}


@pytest.mark.parametrize("query, code", [
    ("state=sleeping", "invalid_request"), ("limit=0", "invalid_request"), ("limit=101", "invalid_request"), ("limit=x", "invalid_request"),
    ("metadata={", "invalid_request"), ("metadata=[]", "invalid_request"), ("next_token=nonsense", "invalid_request"), ("fields=id,shoe_size", "invalid_fields"),
])
def test_a_list_asked_wrongly_names_the_parameter(server, query, code):
    name = query.split("=")[0]
    refused(server.call("GET", f"/v1/sandboxes?{query}"), 400, code, "shoe_size" if name == "fields" else name)


# ---- commands ----------------------------------------------------------------------------


@pytest.mark.parametrize("body, word", [
    ({}, "command"), ({"command": ""}, "command"), ({"command": 1}, "command"), ({"command": "ls", "args": "x"}, "args"),
    ({"command": "ls", "shell": True, "args": ["x"]}, "args"), ({"command": "ls", "cwd": "relative"}, "cwd"), ({"command": "ls", "envs": {"A": 1}}, "envs"),
    ({"command": "ls", "timeout_secs": 0}, "timeout_secs"), ({"command": "ls", "timeout_secs": -1}, "timeout_secs"),
    ({"command": "a\0b"}, "command"), ({"command": "ls", "args": ["a\0b"]}, "args"),
])
def test_a_command_asked_wrongly_names_the_field(server, sandbox, body, word):
    refused(server.call("POST", f"/v1/sandboxes/{sandbox}/exec", body), 400, "invalid_request", word)


def test_a_command_that_does_not_exist_cannot_be_run(server, sandbox):
    path = f"/v1/sandboxes/{sandbox}/exec"
    refused(server.call("POST", path, {"command": "no-such-program"}), 502, "exec_failed", "no-such-program")
    refused(server.call("POST", path, {"command": "/etc/hostname"}), 502, "exec_failed", "/etc/hostname")
    refused(server.call("POST", path, {"command": "no-such-program", "background": True}), 502, "exec_failed", "no-such-program")
    assert server.exec(sandbox, "no-such-program")["exit_code"] == 127
    missing = server.call("POST", path, {"command": "true", "cwd": "/no/such/place"})
    assert missing.status in (400, 502) and "/no/such/place" in missing.json["error"], missing


def test_a_timed_out_command_answers_504_and_leaves_no_process(server, sandbox):
    body = {"command": "(sleep 86433 &); sleep 86433", "shell": True, "timeout_secs": 0.5}
    refused(server.call("POST", f"/v1/sandboxes/{sandbox}/exec", body), 504, "exec_timeout")
    until("no process is left", lambda: server.exec(sandbox, "pgrep -f 'sleep 8643[3]'")["exit_code"] == 1, 60)


def test_a_hundred_megabytes_of_output_arrive_whole_while_the_server_stays_small(server, temporary):
    one = temporary()
    before, peak, ended = server.rss_mib(), 0.0, threading.Event()

    def watch():
        nonlocal peak
        while not ended.wait(0.05):
            peak = max(peak, server.rss_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        size = 100_000_000
        body = {"command": f"head -c {size} /dev/zero | tr '\\0' x; echo end >&2", "shell": True, "timeout_secs": 200}
        answer = server.http(timeout=240)("POST", f"/v1/sandboxes/{one}/exec", body)
    finally:
        ended.set()
        watcher.join()
    assert answer.status == 200, answer.body[:400]
    result = answer.json
    assert (result["exit_code"], len(result["stdout"]), result["stderr"]) == (0, size, "end\n")
    assert result["stdout"].count("x") == size
    assert peak - before < 48, f"the server grew from {before:.0f} to {peak:.0f} MiB"
    assert server.out(one, "echo alive") == "alive"


# ---- idempotency -------------------------------------------------------------------------


def test_one_idempotency_key_from_ten_callers_at_once_makes_one_sandbox(server):
    key, tag = uuid.uuid4().hex, uuid.uuid4().hex

    def ask(_):
        with_own = server.http()
        try:
            while True:
                answer = with_own("POST", "/v1/sandboxes", {"metadata": {"tag": tag}}, headers={"Idempotency-Key": key})
                if answer.status == 201:
                    return answer.json["id"]
                assert (answer.status, answer.code) == (409, "transition_in_progress"), answer
                time.sleep(0.1)
        finally:
            with_own.close()

    with ThreadPoolExecutor(10) as pool:
        ids = set(pool.map(ask, range(10)))
    assert len(ids) == 1
    assert [s["id"] for s in server.listed(metadata=json.dumps({"tag": tag}))] == list(ids)
    refused(server.call("POST", "/v1/sandboxes", {"metadata": {"other": 1}}, headers={"Idempotency-Key": key}), 409, "conflict")
    server.destroy(ids.pop())


# ---- the protocol itself -----------------------------------------------------------------


def test_a_client_that_goes_away_in_the_middle_costs_nothing(server, sandbox):
    at = urlsplit(server.url)
    for _ in range(5):
        with socket.create_connection((at.hostname, at.port)) as s:
            head = (f"POST /v1/sandboxes/{sandbox}/exec HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n"
                    "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{\"command\"")
            s.sendall(head.encode())
    with socket.create_connection((at.hostname, at.port), timeout=30) as s:
        s.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        assert s.recv(1000)[:12] in (b"", b"HTTP/1.1 400")
    assert server.out(sandbox, "echo alive") == "alive"


def test_requests_follow_each_other_on_one_connection(server, sandbox):
    connection = Http(server.url, server.key)
    for _ in range(3):
        assert connection("GET", f"/v1/sandboxes/{sandbox}").status == 200
        assert connection("GET", "/v1/nothing").status == 404
    first = connection.connection.sock
    assert connection("GET", "/v1/sandboxes").status == 200 and connection.connection.sock is first
    connection.close()
