"""Webhooks: events sent to an address outside, signed, in order, and again until they are taken."""

import hashlib
import hmac
import json
import threading
import time

import pytest
from nullspace import Lifecycle, NotFoundError, SandboxError

from appliance import until
from receiver import Receiver

SECRET = "a secret of the receiver's own"
ALL = ["create", "destroy", "timeout_updated", "timeout_expired", "hibernate", "snapshot_created", "resume_from_snapshot", "fork", "reconcile"]


@pytest.fixture(scope="module")
def hooked(module_server, tmp_path_factory):
    """A server over machines in memory that may send to this host."""
    return module_server(config={"node": {"driver": "fake", "checkpoint_dir": str(tmp_path_factory.mktemp("checkpoints"))},
                                 "webhooks": {"allow_private": True}})


@pytest.fixture
def lifecycle(hooked):
    client = Lifecycle(base_url=hooked.url, api_key=hooked.key)
    yield client
    for webhook in client.list_webhooks():
        client.delete_webhook(webhook.id)
    client.close()
    hooked.destroy_all()


def signed(headers, body: bytes) -> bool:
    """As `docs/guides/webhooks.md` says that a receiver should do it."""
    assert headers["x-nullspace-signature-version"] == "v1" and abs(int(headers["x-nullspace-timestamp"]) - time.time()) < 300
    right = hmac.new(SECRET.encode(), headers["x-nullspace-timestamp"].encode() + b"." + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(headers["x-nullspace-signature"], f"v1={right}")


def touch(server, sandbox: str):
    server.done(200, "POST", f"/v1/sandboxes/{sandbox}/timeout", {"timeout_ms": 600_000})


def deliveries(lifecycle, webhook, status: str) -> list:
    return [d for d in lifecycle.list_webhook_deliveries(webhook.id, limit=500) if d.delivery_status.value == status]


def test_events_are_sent_signed_and_in_the_order_of_the_log(hooked, lifecycle, receiver):
    before = hooked.create()
    to = receiver()
    webhook = lifecycle.create_webhook(f"{to.url}/hook?a=b", ALL, SECRET)
    boxes = [hooked.create() for _ in range(3)]
    for _ in range(5):
        for one in boxes:
            touch(hooked, one)
    for one in boxes:
        hooked.destroy(one)
    wanted = {one: hooked.events(one) for one in boxes}
    until("all of it has come", lambda: len(to.requests) == sum(map(len, wanted.values())), 60)
    until("all of it is known to have come", lambda: len(deliveries(lifecycle, webhook, "succeeded")) == len(to.requests), 30)
    for path, headers, body in to.requests:
        assert path == "/hook?a=b" and headers["content-type"].startswith("application/json") and signed(headers, body)
        told = json.loads(body)
        assert (told["id"], told["webhook_id"], told["event"]["id"]) == tuple(
            headers[f"x-nullspace-{name}-id"] for name in ("delivery", "webhook", "event"))
        assert told["webhook_id"] == webhook.id
    for one, events in wanted.items():
        assert [e for e in to.events() if e["sandbox_id"] == one] == events
    assert before not in {e["sandbox_id"] for e in to.events()}  # what was before the webhook is not sent
    [delivery] = [d for d in lifecycle.list_webhook_deliveries(webhook.id, limit=500) if d.event_id == wanted[boxes[0]][0]["id"]]
    detail = lifecycle.get_webhook_delivery(webhook.id, delivery.id)
    assert detail.event.id == delivery.event_id and [(a.attempt_number, a.response_status) for a in detail.attempts] == [(1, 204)]
    assert lifecycle.get_webhook(webhook.id).last_delivery_status.value == "succeeded"


def test_only_the_operations_that_were_asked_for_are_sent_and_only_while_it_is_enabled(hooked, lifecycle, receiver):
    to = receiver()
    webhook = lifecycle.create_webhook(to.url, ["destroy"], SECRET)
    first, second = hooked.create(), hooked.create()
    hooked.destroy(first)
    until("both have come", lambda: len(to.requests) == 2, 30)
    assert {(e["operation"], e["sandbox_id"]) for e in to.events()} == {("destroy", first)}
    assert lifecycle.update_webhook(webhook.id, enabled=False).enabled is False
    hooked.destroy(second)
    assert lifecycle.update_webhook(webhook.id, enabled=True, operations=["create"]).operations[0].value == "create"
    third = hooked.create()
    until("the next has come", lambda: len(to.requests) == 3, 30)
    assert to.events()[-1]["sandbox_id"] == third


def test_an_endpoint_that_fails_is_tried_again_and_what_is_behind_waits(hooked, lifecycle, receiver):
    to = receiver(lambda request, n: n == 1 and request.plain(500))
    webhook = lifecycle.create_webhook(to.url, ALL, SECRET)
    one = hooked.create()
    touch(hooked, one)
    wanted = hooked.events(one)
    until("all of it is taken", lambda: len(deliveries(lifecycle, webhook, "succeeded")) == len(wanted), 90)
    assert [e["id"] for e in to.events()] == [wanted[0]["id"], *(e["id"] for e in wanted)]
    assert to.requests[0][1]["x-nullspace-delivery-id"] == to.requests[1][1]["x-nullspace-delivery-id"]
    detail = lifecycle.get_webhook_delivery(webhook.id, to.requests[0][1]["x-nullspace-delivery-id"])
    assert [(a.attempt_number, a.response_status, a.error_code) for a in detail.attempts] == [(1, 500, "status"), (2, 204, None)]


def test_endpoints_that_hang_redirect_answer_without_end_or_are_not_there_harm_nobody(hooked, lifecycle, receiver):
    def hangs(request, n):
        return to["hangs"].ended.wait(60)

    def answers_without_end(request, n):
        request.send_response(200)
        request.send_header("Content-Length", str(10 << 20))
        request.end_headers()
        try:
            for _ in range(160):
                request.wfile.write(bytes(1 << 16))
        except OSError:
            pass  # it has heard enough
        request.close_connection = True
        return True

    secret_place = receiver()
    to = {"hangs": receiver(hangs), "long": receiver(answers_without_end), "good": receiver(),
          "redirects": receiver(lambda request, n: request.plain(302, Location=f"{secret_place.url}/inside"))}
    closed = Receiver()
    closed.close()
    webhooks = {name: lifecycle.create_webhook(one.url, ["create"], SECRET) for name, one in (to | {"closed": closed}).items()}
    before = hooked.rss_mib()
    boxes = [hooked.create() for _ in range(3)]
    until("the good one has heard of all", lambda: len(to["good"].requests) == 3, 30)

    def attempted(name):
        found = [lifecycle.get_webhook_delivery(webhooks[name].id, d.id).attempts for d in lifecycle.list_webhook_deliveries(webhooks[name].id)]
        return [attempts[0] for attempts in found if attempts]

    for name, code, status in (("hangs", "timeout", None), ("redirects", "redirect", 302), ("closed", "connection", None), ("long", None, 200)):
        attempts = until(f"attempts at the one that {name}", lambda: attempted(name), 60)
        assert {(a.error_code, a.response_status) for a in attempts} == {(code, status)}, (name, attempts)
    assert secret_place.requests == []
    assert hooked.rss_mib() - before < 32
    assert hooked.out(boxes[0], "echo", "alive") == "alive"


def test_a_delivery_can_be_sent_again_by_hand(hooked, lifecycle, receiver):
    to = receiver()
    webhook = lifecycle.create_webhook(to.url, ["create"], SECRET)
    hooked.create()
    [delivery] = until("it is delivered", lambda: deliveries(lifecycle, webhook, "succeeded"), 30)
    path = f"/v1/lifecycle/webhooks/{webhook.id}/deliveries/{delivery.id}"
    again = hooked.done(200, "POST", f"{path}/redeliver")
    assert again["id"] == delivery.id and again["delivery_status"] in ("queued", "in_progress", "succeeded")
    until("it has come again", lambda: len(to.requests) == 2, 30)
    assert to.requests[0][1]["x-nullspace-delivery-id"] == to.requests[1][1]["x-nullspace-delivery-id"] == delivery.id
    until("both attempts are recorded", lambda: len(hooked.done(200, "GET", path)["attempts"]) == 2, 30)


def test_what_was_not_delivered_when_the_server_was_killed_is_delivered_by_the_next(own_server, receiver, tmp_path):
    server = own_server(config={"node": {"driver": "fake", "checkpoint_dir": str(tmp_path)}, "webhooks": {"allow_private": True}})
    to = receiver(lambda request, n: not willing.is_set() and request.plain(503))
    willing = threading.Event()
    webhook = server.done(201, "POST", "/v1/lifecycle/webhooks", {"url": to.url, "operations": ["create"], "signing_secret": SECRET, "enabled": True})["id"]
    one = server.create()
    until("it was refused", lambda: to.requests, 30)
    server.kill()
    willing.set()
    server.start()
    path = f"/v1/lifecycle/webhooks/{webhook}/deliveries"
    until("it is taken", lambda: [d["delivery_status"] for d in server.done(200, "GET", path)] == ["succeeded"], 90)
    assert {e["sandbox_id"] for e in to.events()} == {one} and all(signed(headers, body) for _, headers, body in to.requests)


def test_secrets_are_never_shown(hooked, lifecycle, receiver):
    webhook = lifecycle.create_webhook(receiver().url, ["create"], SECRET)
    assert webhook.has_signing_secret
    lifecycle.update_webhook(webhook.id, signing_secret=SECRET + "2")
    for path in ("", f"/{webhook.id}", f"/{webhook.id}/deliveries"):
        assert SECRET not in json.dumps(hooked.done(200, "GET", f"/v1/lifecycle/webhooks{path}"))
    refused = hooked.call("POST", "/v1/lifecycle/webhooks", {"url": "nonsense", "operations": ["create"], "signing_secret": SECRET})
    assert refused.status == 400 and SECRET not in refused.body.decode()
    assert SECRET not in hooked.text()


def test_a_webhook_that_is_gone_is_not_found(hooked, lifecycle, receiver):
    webhook = lifecycle.create_webhook(receiver().url, ["create"], SECRET)
    lifecycle.delete_webhook(webhook.id)
    with pytest.raises(NotFoundError) as refused:
        lifecycle.get_webhook(webhook.id)
    assert refused.value.code == "webhook_not_found" and webhook.id not in {w.id for w in lifecycle.list_webhooks()}


@pytest.mark.parametrize("more, word", [
    ({"url": "ftp://example.com/x"}, "url"), ({"url": "https://"}, "url"), ({"url": "https://u:p@example.com/"}, "url"), ({"url": None}, "url"),
    ({"url": "https://example.com/" + "x" * 2048}, "url"), ({"operations": []}, "operations"), ({"operations": ["explode"]}, "operations"),
    ({"signing_secret": "short"}, "signing_secret"), ({"signing_secret": "x" * 257}, "signing_secret"), ({"signing_secret": None}, "signing_secret"),
])
def test_a_webhook_asked_wrongly_names_the_field(hooked, more, word):
    body = {"url": "https://example.com/hook", "operations": ["create"], "signing_secret": SECRET} | more
    refused = hooked.call("POST", "/v1/lifecycle/webhooks", body)
    assert (refused.status, refused.code) == (400, "invalid_request") and word in refused.json["error"], refused


@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "[::1]", "[::ffff:127.0.0.1]", "[fd00::1]", "0.0.0.0"])
def test_private_addresses_are_refused_unless_the_operator_allows_them(server, host):
    refused = server.call("POST", "/v1/lifecycle/webhooks", {"url": f"http://{host}/", "operations": ["create"], "signing_secret": SECRET})
    assert (refused.status, refused.code) == (400, "invalid_request") and "url" in refused.json["error"], refused


@pytest.mark.parametrize("host", ["localhost", "2130706433"])
def test_a_name_that_leads_to_a_private_address_is_not_sent_to(server, as_user, receiver, temporary, host):
    to, lifecycle = receiver(), Lifecycle()
    try:
        webhook = lifecycle.create_webhook(to.url.replace("127.0.0.1", host), ["create"], SECRET)
    except SandboxError as error:
        assert error.code == "invalid_request" and "url" in str(error)
        return
    temporary()
    [delivery] = until("it is on its way", lambda: lifecycle.list_webhook_deliveries(webhook.id), 30)
    [attempt] = until("it was tried", lambda: lifecycle.get_webhook_delivery(webhook.id, delivery.id).attempts[:1], 60)
    assert attempt.error_code == "address_refused" and to.requests == []
    lifecycle.delete_webhook(webhook.id)
