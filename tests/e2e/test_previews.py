"""Services of a sandbox as others reach them: by local address and by name, with tokens and without, in a browser, behind a customer's proxy.

Everything here goes through the gateway of a real server to a real service in a real machine.
"""

import json
import socket
import ssl
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import websockets.sync.client as ws
from nullspace import Sandbox, SandboxError
from websockets.exceptions import ConnectionClosed, InvalidStatus

from appliance import Appliance, until
from browser import Browser

SERVICE = (Path(__file__).parent / "web_service.py").read_text()
PORT = 8000


def start_service(server: Appliance, sandbox: str, port: int = PORT) -> str:
    """The service in it, running and reachable; the ID of the sandbox."""
    server.done(200, "POST", f"/v1/sandboxes/{sandbox}/files/write", {"path": "/srv/web_service.py", "content": SERVICE, "encoding": "utf8", "user": None})
    server.background(sandbox, "python3", "/srv/web_service.py", str(port))
    ready = server.done(200, "POST", f"/v1/sandboxes/{sandbox}/ports/{port}/readiness", {"kind": "http", "path": "/headers", "timeout_secs": 60})
    assert ready["ready"], ready
    return sandbox


@pytest.fixture(scope="module")
def public(server):
    one = start_service(server, server.create(timeout_ms=1_800_000))
    yield one
    server.destroy(one)


@pytest.fixture(scope="module")
def private(server):
    answer = server.done(201, "POST", "/v1/sandboxes", {"network": {"allow_public_traffic": False}, "timeout_ms": 1_800_000})
    start_service(server, answer["id"])
    yield answer
    server.destroy(answer["id"])


def host_of(server, sandbox: str, port: int = PORT) -> str:
    return server.done(200, "POST", f"/v1/sandboxes/{sandbox}/host", {"port": port})["host"]


def signed(server, sandbox: str, port: int = PORT, **more) -> dict:
    return server.done(200, "POST", f"/v1/sandboxes/{sandbox}/ports/{port}/signed-preview-url", more)


def target(server, sandbox: str, port: int = PORT, **more) -> dict:
    return server.done(200, "POST", f"/v1/sandboxes/{sandbox}/ports/{port}/preview-proxy-target", more)


def code(answer: httpx.Response) -> str | None:
    return answer.json()["code"] if answer.status_code >= 400 else None


def refused(url: str, **more) -> str:
    """With which code a WebSocket is refused."""
    with pytest.raises(InvalidStatus) as caught:
        ws.connect(url, **more)
    return json.loads(caught.value.response.body)["code"]


def raw(address: str, data: bytes, patience: float = 15.0) -> bytes:
    """What a server says to these bytes until it closes."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), patience) as link:
        link.sendall(data)
        got = b""
        try:
            while piece := link.recv(65536):
                got += piece
        except TimeoutError:
            raise AssertionError(f"not closed within {patience} s; got {got[:300]!r}") from None
        except ConnectionResetError:
            pass
        return got


# ---- forwarding -----------------------------------------------------------------------------------


def test_a_public_port_answers_at_a_local_address_without_a_token(server, public):
    host = host_of(server, public)
    assert host.startswith("127.0.0.1:") and host_of(server, public) == host, "the same each time"
    answer = httpx.get(f"http://{host}/headers?a=1&b=%20", headers={"Cookie": "mine=1", "X-Mine": "yes"})
    seen = answer.json()
    headers = {k.lower(): v for k, v in seen["headers"]}
    assert seen["line"] == "GET /headers?a=1&b=%20 HTTP/1.1" and answer.headers["X-Service"] == "mine"
    assert headers["host"] == host and headers["cookie"] == "mine=1" and headers["x-mine"] == "yes"
    assert (headers["x-forwarded-host"], headers["x-forwarded-proto"], headers["x-forwarded-for"]) == (host, "http", "127.0.0.1")
    added = set(answer.headers) - {"x-service", "content-type", "content-length", "date", "server"}
    assert not added, f"nothing is added to an answer: {added}"


def test_bodies_pass_as_they_come_in_both_directions(server, public):
    host = host_of(server, public)
    name, port = host.split(":")
    with socket.create_connection((name, int(port)), 30) as link:
        link.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nfirst\r\n")
        got = b""
        while b"first" not in got:
            assert (piece := link.recv(4096)), "the first piece comes back before the second is sent"
            got += piece
        link.sendall(b"6\r\nsecond\r\n0\r\n\r\n")
        while piece := link.recv(4096):
            got += piece
        assert got.endswith(b"6\r\nsecond\r\n0\r\n\r\n"), got
    big = httpx.post(f"http://{host}/echo", content=b"z" * (8 << 20), timeout=120)
    assert big.content == b"z" * (8 << 20)
    assert httpx.head(f"http://{host}/bytes/1000").headers["content-length"] == "1000"


def test_server_sent_events_come_one_by_one(server, public):
    host = host_of(server, public)
    server.out(public, "rm -f /tmp/event-*")
    with httpx.stream("GET", f"http://{host}/events", timeout=60) as answer:
        lines = (line for line in answer.iter_lines() if line)
        for n in range(3):
            assert next(lines) == f"data: {n}"
            server.out(public, f"touch /tmp/event-{n + 1}")


def test_websockets_echo_and_close_in_order(server, public):
    info = server.done(200, "POST", f"/v1/sandboxes/{public}/host", {"port": PORT})
    with ws.connect(info["websocket_url"].rstrip("/") + "/ws") as socket_:
        for text in ("one", "x" * 40_000):
            socket_.send(text)
            assert socket_.recv(timeout=30) == text
        socket_.close()
        assert socket_.close_code == 1000


def test_a_local_address_is_plain_tcp_for_what_is_no_http(server, public):
    program = (
        "import socket, threading\n"
        "l = socket.create_server(('0.0.0.0', 9100))\n"
        "def one(s):\n"
        "    s.sendall(b'greeting\\n')\n"
        "    while d := s.recv(4096): s.sendall(d)\n"
        "    s.sendall(b'end'); s.close()\n"
        "while True: threading.Thread(target=one, args=(l.accept()[0],)).start()\n")
    server.background(public, "python3", "-c", program)
    assert server.done(200, "POST", f"/v1/sandboxes/{public}/ports/9100/readiness", {"kind": "tcp", "timeout_secs": 60})["ready"]
    host, port = host_of(server, public, 9100).split(":")
    with socket.create_connection((host, int(port)), 30) as link:
        assert link.recv(100) == b"greeting\n", "the server speaks first"
        link.sendall(b"\x00\xffbinary")
        assert link.recv(100) == b"\x00\xffbinary"
        link.shutdown(socket.SHUT_WR)
        assert link.recv(100) == b"end", "one side closed, the other still speaks"


def test_the_host_can_be_masked(server, temporary):
    one = start_service(server, temporary(network={"mask_request_host": "localhost:${PORT}"}))
    seen = httpx.get(f"http://{host_of(server, one)}/headers").json()
    assert dict(seen["headers"])["Host"] == f"localhost:{PORT}"


# ---- tokens ---------------------------------------------------------------------------------------


def test_a_signed_url_works_and_its_token_does_not_reach_the_service(server, public):
    made = signed(server, public)
    answer = httpx.get(made["url"].replace("/?", "/headers?a=b&"))
    assert answer.status_code == 200 and answer.json()["line"] == "GET /headers?a=b HTTP/1.1"
    assert "edge_token" not in answer.text
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and "Path=/" in cookie and "Max-Age=" in cookie
    again = httpx.get(f"http://{host_of(server, public)}/headers", headers={"Cookie": cookie.split(";")[0] + "; own=1"})
    assert dict(again.json()["headers"])["Cookie"] == "own=1", "the gateway's cookie is the gateway's"
    with ws.connect(made["websocket_url"].replace("/?", "/ws?")) as socket_:
        socket_.send("hello")
        assert socket_.recv(timeout=30) == "hello"


def flipped(token: str) -> str:
    at = len(token) // 2
    return token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1:]


def token_of(url: str) -> str:
    return parse_qs(urlsplit(url).query)["edge_token"][0]


def test_tokens_are_good_for_one_port_one_kind_and_one_place(server, public, private):
    made, proxy = signed(server, public), target(server, public)
    http, socket_ = token_of(made["url"]), token_of(made["websocket_url"])
    at, other = f"http://{host_of(server, public)}/headers", f"http://{host_of(server, public, 8001)}/headers"
    header = {proxy["token_header_name"]: proxy["http_token"]}
    for url, params, headers, expected in [
        (at, {"edge_token": flipped(http)}, {}, "edge_token_invalid"),
        (at, {"edge_token": socket_}, {}, "edge_token_scope_mismatch"),
        (at, {"edge_token": "nonsense"}, {}, "edge_token_invalid"),
        (at, {"edge_token": proxy["http_token"]}, {}, "edge_token_scope_mismatch"),
        (other, {"edge_token": http}, {}, "edge_token_scope_mismatch"),
        (at, {}, {proxy["token_header_name"]: http}, "preview_proxy_token_scope_mismatch"),
        (at, {}, {proxy["token_header_name"]: proxy["websocket_token"]}, "preview_proxy_token_scope_mismatch"),
        (at, {}, {proxy["token_header_name"]: flipped(proxy["http_token"])}, "preview_proxy_token_invalid"),
        (other, {}, header, "preview_proxy_token_scope_mismatch"),
        (at, {"__ns_preview_transport": "header"}, {}, "preview_proxy_token_missing"),
    ]:
        answer = httpx.get(url, params=params, headers=headers)
        assert code(answer) == expected, (url, params, headers, answer.text)
        assert answer.status_code == 401
    elsewhere = f"http://{host_of(server, private['id'])}/headers"
    traffic = {"x-nullspace-traffic-access-token": private["traffic_access_token"]}
    assert code(httpx.get(elsewhere, params={"edge_token": http}, headers=traffic)) == "edge_token_scope_mismatch"
    assert refused(made["websocket_url"].replace(socket_, http).replace("/?", "/ws?")) == "edge_token_scope_mismatch"
    assert httpx.get(at, params={"__ns_preview_transport": "header"}, headers=header).status_code == 200


def test_a_private_sandbox_answers_only_to_its_traffic_token(server, private):
    at, name = f"http://{host_of(server, private['id'])}/headers", "x-nullspace-traffic-access-token"
    token = private["traffic_access_token"]
    assert code(httpx.get(at)) == "edge_token_missing"
    assert code(httpx.get(at, headers={name: flipped(token)})) == "edge_token_invalid"
    assert code(httpx.get(at, params={name: token})) == "edge_token_missing", "in the wrong place"
    assert code(httpx.get(signed(server, private["id"])["url"])) == "edge_token_missing", "it is required besides"
    answer = httpx.get(at, headers={name: token})
    assert answer.status_code == 200 and name not in {k.lower() for k, _ in answer.json()["headers"]}
    assert httpx.get(signed(server, private["id"])["url"], headers={name: token}).status_code == 200
    assert target(server, private["id"])["traffic_access_required"] is True
    shown = server.done(200, "GET", f"/v1/sandboxes/{private['id']}")
    assert not shown.get("traffic_access_token"), "told by create alone"
    plain = raw(host_of(server, private["id"]), b"\x00\x01\x02\r\n\r\n")
    assert b"mine" not in plain, "plain TCP shows no token"


def test_a_revoked_grant_cuts_what_it_holds_open_and_lets_nothing_in(server, public):
    made = signed(server, public)
    server.out(public, "rm -f /tmp/event-*")
    with ws.connect(made["websocket_url"].replace("/?", "/ws?")) as socket_, httpx.stream("GET", made["url"].replace("/?", "/events?"), timeout=60) as events:
        lines = events.iter_lines()
        assert next(lines) == "data: 0"
        gone = server.done(200, "DELETE", f"/v1/sandboxes/{public}/preview-urls/{made['grant']['id']}")
        assert gone["success"] is True and gone["grant"]["status"] == "revoked" and gone["grant"]["revoked_at"]
        with pytest.raises(ConnectionClosed):
            socket_.recv(timeout=30)
        with pytest.raises(httpx.HTTPError):
            list(lines)
    assert code(httpx.get(made["url"])) == "preview_grant_revoked"
    assert refused(made["websocket_url"]) == "preview_grant_revoked"
    again = server.done(200, "DELETE", f"/v1/sandboxes/{public}/preview-urls/{made['grant']['id']}")
    assert again["grant"]["revoked_at"] == gone["grant"]["revoked_at"]


def test_grants_are_listed_with_what_passed_and_never_with_a_token(server, public):
    made = signed(server, public, 8000, expires_in_seconds=1)
    for _ in range(3):
        httpx.post(made["url"].replace("/?", "/echo?"), content=b"12345")

    def grant() -> dict:
        return next(g for g in server.done(200, "GET", f"/v1/sandboxes/{public}/preview-urls", query={"port": 8000})["items"] if g["id"] == made["grant"]["id"])

    counted = until("the uses are counted", lambda: (g := grant())["http_request_count"] == 3 and g["bytes_in_count"] >= 15 and g, 30)
    assert counted["use_count"] == 3 and counted["bytes_out_count"] >= 15 and counted["first_used_at"] and counted["status"] == "active"
    assert token_of(made["url"]) not in json.dumps(counted)
    assert server.done(200, "GET", f"/v1/sandboxes/{public}/preview-urls", query={"port": 4242})["items"] == []
    assert server.call("GET", f"/v1/sandboxes/{public}/preview-urls", query={"port": "x"}).code == "invalid_request"


def test_a_token_that_is_too_old_is_refused_and_what_it_holds_open_is_cut(server, public):
    """The shortest time is a minute; a test does not wait that long for the clock, but sees the bound."""
    made = signed(server, public, expires_in_seconds=1)
    from datetime import datetime

    lasts = datetime.fromisoformat(made["access_token_expires_at"]) - datetime.fromisoformat(made["grant"]["issued_at"])
    assert lasts.total_seconds() == pytest.approx(60, abs=1)
    longest = signed(server, public, expires_in_seconds=10**9)
    lasts = datetime.fromisoformat(longest["access_token_expires_at"]) - datetime.fromisoformat(longest["grant"]["issued_at"])
    assert lasts.total_seconds() == pytest.approx(86400, abs=1)


@pytest.mark.parametrize("port", ["22", "5900", "5999", "7000", "7001", "0", "65536", "-1", "x"])
def test_ports_that_cannot_be_reached_are_refused(server, public, port):
    answer = server.call("GET", f"/v1/sandboxes/{public}/ports/{port}/preview-url")
    assert answer.status == 400 and answer.code in ("unsupported_preview_port", "invalid_request"), answer
    if port.lstrip("-").isdigit():
        assert server.call("POST", f"/v1/sandboxes/{public}/host", {"port": int(port)}).status == 400


# ---- the unmodified client ------------------------------------------------------------------------


def test_the_unmodified_client_makes_lists_uses_and_revokes_previews(as_user):
    with Sandbox.create(timeout=600) as sandbox:
        sandbox.commands.run("python3 -m http.server 8080", background=True, shell=True)
        ready = sandbox.wait_for_preview(8080, kind="http", path="/", timeout_secs=60)
        assert ready.ready and ready.route_ready and ready.service_ready and ready.kind == "http"
        assert httpx.get(f"http://{sandbox.get_host(8080)}/").status_code == 200
        assert httpx.get(sandbox.get_url(8080)).status_code == 200 and sandbox.get_websocket_url(8080).startswith("ws")
        url = sandbox.get_preview_url(8080)
        made = sandbox.create_signed_preview_url(8080, expires_in_seconds=120)
        assert httpx.get(made.url).status_code == 200 and made.access_token_transport == "query"
        proxy = sandbox.create_preview_proxy_target(8080)
        assert proxy.token_transport == "header" and httpx.get(proxy.http_url, headers={proxy.token_header_name: proxy.http_token}).status_code == 200
        listed = {grant.id for grant in sandbox.list_preview_urls(port=8080)}
        assert {made.grant.id, proxy.grant.id} <= listed and url
        assert sandbox.revoke_preview_url(made.grant.id).success
        assert httpx.get(made.url).status_code == 401
        late = sandbox.wait_for_preview(8081, timeout_secs=1)
        assert not late.ready and late.route_ready and late.code == "preview_service_not_ready"
        with pytest.raises(SandboxError):
            sandbox.create_signed_preview_url(22)


def test_readiness_answers_when_the_service_begins(server, temporary):
    one = temporary()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(server.done, 200, "POST", f"/v1/sandboxes/{one}/ports/8500/readiness", {"timeout_secs": 60, "interval_ms": 60_000})
        server.background(one, "sleep 0.5; exec python3 -m http.server 8500")
        ready = waiting.result(60)
    assert ready["ready"] and ready["attempts"] > 1, "the pause asked for is the longest one"


# ---- in a browser ---------------------------------------------------------------------------------


def test_a_browser_opens_a_signed_preview_of_a_page_with_a_websocket(server, public, tmp_path):
    made, browser = signed(server, public), Browser(tmp_path / "profile")
    try:
        from urllib.parse import quote

        browser.open(made["url"].replace("/?", f"/page?socket={quote(made['websocket_url'].replace('/?', '/ws?'), safe='')}&"))
        until("the WebSocket answered the page", lambda: browser.value("document.title") == "echo: from the page", 60)
        [cookie] = [c for c in browser.cookies() if c["name"].startswith("__ns_preview")]
        assert cookie["httpOnly"] is True
        # The page's own links carry no token: the cookie goes on with it.
        browser.open(made["url"].split("?")[0] + "headers")
        until("the next page is there", lambda: "x-forwarded-host" in (browser.value("document.body.innerText") or "").lower(), 30)
        server.done(200, "DELETE", f"/v1/sandboxes/{public}/preview-urls/{made['grant']['id']}")
        browser.open(made["url"])
        until("a person is told why", lambda: "revoked" in (browser.value("document.body.innerText") or "").lower(), 30)
    finally:
        browser.close()


def test_people_are_shown_a_page_and_programs_json(server, public):
    url = f"http://{host_of(server, public)}/?edge_token=nonsense"
    page = httpx.get(url, headers={"Accept": "text/html,*/*"})
    assert page.status_code == 401 and page.headers["content-type"].startswith("text/html") and "edge_token_invalid" in page.text
    assert "nonsense" not in page.text and "<script" not in page.text
    assert httpx.get(url).json()["code"] == "edge_token_invalid"
    nobody = httpx.get(f"http://{host_of(server, public, 8099)}/")
    assert nobody.status_code == 502 and code(nobody) == "preview_service_not_ready"


# ---- behind a customer's proxy --------------------------------------------------------------------


def test_nginx_as_the_customers_proxy_hides_the_token_from_the_browser(server, public, tmp_path):
    proxy = target(server, public, transports=["http", "websocket"])
    upstream, port = urlsplit(proxy["http_url"]), free_port()
    (tmp_path / "nginx.conf").write_text(f"""
daemon off; worker_processes 1; pid {tmp_path}/pid; error_log stderr;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {tmp_path}/b; proxy_temp_path {tmp_path}/p; fastcgi_temp_path {tmp_path}/f; uwsgi_temp_path {tmp_path}/u; scgi_temp_path {tmp_path}/s;
  map $http_upgrade $token {{ default "{proxy['websocket_token']}"; "" "{proxy['http_token']}"; }}
  map $http_upgrade $connection_upgrade {{ default upgrade; "" close; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://{upstream.netloc};
      proxy_http_version 1.1;
      proxy_set_header {proxy['token_header_name']} $token;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
      proxy_set_header X-Forwarded-Host $host;
      proxy_set_header X-Forwarded-Proto https;
      proxy_set_header X-Forwarded-For $remote_addr;
    }}
  }}
}}
""")
    nginx = subprocess.Popen(["nginx", "-c", tmp_path / "nginx.conf", "-p", tmp_path], stderr=subprocess.DEVNULL)
    try:
        until("nginx listens", lambda: answers(port), 30)
        seen = httpx.get(f"http://127.0.0.1:{port}/headers").json()
        headers = {k.lower(): v for k, v in seen["headers"]}
        assert headers["x-forwarded-proto"] == "https" and proxy["token_header_name"] not in headers
        with ws.connect(f"ws://127.0.0.1:{port}/ws") as socket_:
            socket_.send("through two proxies")
            assert socket_.recv(timeout=30) == "through two proxies"
        server.done(200, "DELETE", f"/v1/sandboxes/{public}/preview-urls/{proxy['grant']['id']}")
        assert code(httpx.get(f"http://127.0.0.1:{port}/headers")) == "preview_grant_revoked"
    finally:
        nginx.terminate()
        nginx.wait()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


# ---- waking ---------------------------------------------------------------------------------------


def test_traffic_wakes_a_sandbox_once_and_every_request_is_answered(server, temporary):
    one = start_service(server, temporary(timeout_action="hibernate", auto_resume=True))
    host = host_of(server, one)
    server.hibernate(one)
    with ThreadPoolExecutor(20) as pool:
        answers_ = list(pool.map(lambda _: httpx.get(f"http://{host}/headers", timeout=120).status_code, range(20)))
    assert answers_ == [200] * 20
    assert server.told(one).count("resume_from_snapshot/succeeded") == 1


def test_a_paused_sandbox_that_does_not_wake_says_so(server, temporary):
    one = start_service(server, temporary())
    host, made = host_of(server, one), signed(server, one)
    server.hibernate(one)
    answer = httpx.get(f"http://{host}/")
    assert answer.status_code == 503 and code(answer) == "sandbox_paused_auto_resume_disabled" and int(answer.headers["retry-after"]) > 0
    assert not server.done(200, "POST", f"/v1/sandboxes/{one}/ports/{PORT}/readiness", {"timeout_secs": 0})["route_ready"]
    server.resume(one)
    assert httpx.get(made["url"], timeout=60).status_code == 200, "a grant outlives a pause"
    server.destroy(one)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://{host}/")
    assert server.call("POST", f"/v1/sandboxes/{one}/host", {"port": 80}).code == "sandbox_not_found"


def test_addresses_and_grants_survive_a_kill_of_the_server(own_server):
    server = own_server()
    one = start_service(server, server.create())
    host, made = host_of(server, one), signed(server, one)
    server.kill()
    server.start()
    assert host_of(server, one) == host
    assert httpx.get(f"http://{host}/headers").status_code == 200 and httpx.get(made["url"]).status_code == 200
    assert [g["id"] for g in server.done(200, "GET", f"/v1/sandboxes/{one}/preview-urls")["items"]] == [made["grant"]["id"]]


def test_a_child_has_an_address_and_tokens_of_its_own(server, public):
    made, host = signed(server, public), host_of(server, public)
    [child] = server.fork(public)
    try:
        own = host_of(server, child)
        assert own != host and httpx.get(f"http://{own}/headers", timeout=60).status_code == 200
        assert code(httpx.get(made["url"].replace(host, own))) == "edge_token_scope_mismatch"
        assert server.done(200, "GET", f"/v1/sandboxes/{child}/preview-urls")["items"] == []
    finally:
        server.destroy(child)


def test_turning_public_traffic_off_cuts_it(server, temporary):
    one = start_service(server, temporary())
    host = host_of(server, one)
    with ws.connect(f"ws://{host}/ws") as socket_:
        socket_.send("x")
        assert socket_.recv(timeout=30) == "x"
        server.done(200, "PATCH", f"/v1/sandboxes/{one}/network", {"allow_public_traffic": False})
        with pytest.raises(ConnectionClosed):
            socket_.recv(timeout=30)
    assert code(httpx.get(f"http://{host}/headers")) == "edge_token_missing"


# ---- with a domain, over TLS ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_name(module_server, workspace):
    """A server with a domain and a certificate for what is below it."""
    at = workspace / "tls"
    at.mkdir()
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30", "-subj", "/CN=previews",
                    "-addext", "subjectAltName=DNS:*.preview.test", "-keyout", at / "key.pem", "-out", at / "cert.pem"], check=True, capture_output=True)
    gateway = {"domain": "preview.test", "listen": f"127.0.0.1:{free_port()}", "tls_certificate": str(at / "cert.pem"), "tls_key": str(at / "key.pem")}
    server = module_server(config={"gateway": gateway})
    server.authority = at / "cert.pem"
    return server


def test_with_a_domain_hosts_have_names_that_cannot_be_guessed(by_name):
    one = start_service(by_name, by_name.create())
    host = host_of(by_name, one)
    name, port = host.split(":")
    label = name.split(".")[0]
    assert name.startswith(f"{PORT}-") and name.endswith(".preview.test") and len(label) <= 63 and one.removeprefix("sb_") not in name

    def curl(url: str, *words: str) -> subprocess.CompletedProcess:
        return subprocess.run(["curl", "-sS", "-m", "30", "--cacert", by_name.authority, "--resolve", f"{urlsplit(url).hostname}:{port}:127.0.0.1", *words, url],
                              capture_output=True, text=True)

    for version in ("--http1.1", "--http2"):
        got = curl(f"https://{host}/headers", version)
        headers = {k.lower(): v for k, v in json.loads(got.stdout)["headers"]}
        assert headers["x-forwarded-proto"] == "https" and headers["host"] == host, got
    made = signed(by_name, one)
    assert json.loads(curl(made["url"].replace("/?", "/headers?")).stdout)["line"] == "GET /headers HTTP/1.1"
    assert "Secure" in curl(made["url"], "-D", "-", "-o", "/dev/null").stdout
    context = ssl.create_default_context(cafile=by_name.authority)
    with socket.create_connection(("127.0.0.1", int(port)), 30) as link, ws.connect(made["websocket_url"].replace("/?", "/ws?"), sock=link, ssl=context) as socket_:
        socket_.send("over TLS")
        assert socket_.recv(timeout=30) == "over TLS"
    unknown = curl(f"https://{PORT}-{'a' * 26}.preview.test:{port}/", "-w", "%{http_code}")
    assert unknown.stdout.endswith("404") and "sandbox_not_found" in unknown.stdout, unknown
    for bad in (f"https://x-{'a' * 26}.preview.test:{port}/", f"https://preview.test:{port}/"):
        assert curl(bad, "-k", "-w", "%{http_code}").stdout.endswith("404"), bad
    by_name.destroy(one)
    assert "sandbox_not_found" in curl(f"https://{host}/").stdout


# ---- bad manners ----------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [
    b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    b"GET /headers HTTP/1.1\r\nHost : x\r\n\r\n",
    b"GET /headers HTTP/1.1\r\nHost: x\r\nX-A: b\r\n folded\r\n\r\n",
    b"GET /headers HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    b"GET /headers HTTP/1.1\r\n\r\n",
    b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n",
    b"GET /headers HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 200_000 + b"\r\n\r\n",
], ids=["both_lengths", "two_lengths", "odd_coding", "odd_chunk", "space_before_colon", "folded", "two_hosts", "no_host", "no_key", "long_header"])
def test_requests_that_two_readers_might_read_differently_are_refused(server, public, request_):
    got = raw(host_of(server, public), request_)
    status = got.split(b" ")[1] if got.startswith(b"HTTP/1.1 ") else b"closed"
    # Both lengths: the chunks count, what is forwarded has that one length, and the connection ends (RFC 9112, 6.3).
    assert status in (b"400", b"431", b"501", b"closed") or b"\r\nTransfer-Encoding: chunked\r\n\r\n0" in request_, got[:300]
    assert b"smuggled" not in got and got.count(b"HTTP/1.1 ") <= 1


def test_a_path_is_passed_on_as_it_came(server, public):
    got = raw(host_of(server, public), b"GET /../a/./b//c%2e%2e?x=../y HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert b"GET /../a/./b//c%2e%2e?x=../y HTTP/1.1" in got


def test_a_slow_reader_of_its_own_request_is_cut_and_hurts_nobody(server, public):
    host, port = host_of(server, public).split(":")
    slow = [socket.create_connection((host, int(port)), 60) for _ in range(50)]
    for one in slow:
        one.sendall(b"GET /headers HTTP/1.1\r\nHost: x\r\nX-")
    assert httpx.get(f"http://{host}:{port}/headers").status_code == 200
    for one in slow:
        one.settimeout(60)
        got = one.recv(4096)
        assert got == b"" or b" 408 " in got, got
        one.close()


@pytest.mark.parametrize("path", ["/garbage", "/early"])
def test_a_service_with_bad_manners_is_an_error_of_the_service(server, public, path):
    try:
        answer = httpx.get(f"http://{host_of(server, public)}{path}", timeout=60)
        assert answer.status_code == 502 and code(answer) == "preview_service_not_ready"
    except httpx.RemoteProtocolError:
        assert path == "/early", "a body that ends early is not made whole"
    assert httpx.get(f"http://{host_of(server, public)}/headers").status_code == 200


def test_a_foreign_key_sees_no_grant_and_makes_none(server, public):
    made = signed(server, public)
    other = json.loads(server.keys("create", "--tenant", "other-previews", "--json"))["secret"]
    for method, path, body in (("POST", "host", {"port": 8000}), ("GET", "preview-urls", None), ("POST", "ports/8000/signed-preview-url", {}),
                               ("DELETE", f"preview-urls/{made['grant']['id']}", None), ("POST", "ssh-access", {"public_key": "x"}), ("GET", "network", None)):
        answer = server.call(method, f"/v1/sandboxes/{public}/{path}", body, key=other)
        assert answer.code == "sandbox_not_found", (method, path, answer)
    assert httpx.get(made["url"]).status_code == 200
