"""Hibernation, snapshots, forks, events and webhooks from the command line, with the public client's `nullspace` and with ours."""

import json

import pytest

from appliance import until


@pytest.fixture
def one(server, temporary):
    return temporary(timeout_ms=1_800_000, metadata={"from": "cli"})


def test_a_sandbox_is_hibernated_and_resumed(cli, server, one):
    server.out(one, "echo kept > /workspace/note")
    slept = cli.json("sandbox", "hibernate", one)
    assert slept["id"].startswith("snap_") and slept["sandbox_id"] == one and slept["size_bytes"] > 0
    assert cli.json("sandbox", "get", one)["status"] == "paused"
    assert one in {s["id"] for s in cli.json("sandbox", "list", "--json", "--state", "paused")}
    woken = cli.json("sandbox", "resume", slept["id"])
    assert (woken["id"], woken["status"]) == (one, "running")
    cli("sandbox", "pause", one)
    # A command that needs it running wakes it.
    assert cli("sandbox", "exec", one, "--", "cat", "/workspace/note").stdout == "kept\n"
    assert cli.json("sandbox", "timeout", "set", one, "--seconds", "900", "--action", "hibernate")["timeout_ms"] == 900_000
    assert cli.json("sandbox", "metrics", one, "--json")[-1]["cpu_count"] == 1


def test_a_sandbox_is_forked_and_begun_from_a_snapshot(cli, server, one):
    server.out(one, "echo kept > /workspace/note")
    child = cli.json("sandbox", "fork", one, "--idempotency-key", f"fork-{one}")
    assert child["status"] == "running" and child["id"] != one
    taken = cli.json("snapshot", "create", one)
    assert [s["id"] for s in cli.json("sandbox", "snapshot", "list", one)] == [taken["id"]]
    also = cli.json("sandbox", "snapshot", "create", one)
    assert {s["id"] for s in cli.json("snapshot", "list", "--sandbox-id", one, "--metadata", "from=cli")} == {taken["id"], also["id"]}
    assert cli.json("snapshot", "get", taken["id"])["metadata"] == {"from": "cli"}
    begun = cli.json("sandbox", "create", "--snapshot-id", taken["id"], "--timeout", "600", "--on-timeout", "pause", "--auto-resume")
    assert begun["timeout_action"] == "hibernate"
    for each in (child["id"], begun["id"]):
        assert cli("sandbox", "exec", each, "--", "cat", "/workspace/note").stdout == "kept\n"
        cli("sandbox", "kill", each)
    for each in (taken["id"], also["id"]):
        cli("snapshot", "delete", each)
    cli("snapshot", "get", taken["id"], exit=3)
    slept = cli.json("sandbox", "hibernate", one)
    cli("snapshot", "delete", slept["id"], exit=7)


def test_events_are_listed_and_streamed(cli, server, one):
    cli("sandbox", "timeout", "set", one, "--seconds", "900")
    page = cli.json("lifecycle", "events", "--sandbox-id", one, "--order", "asc")
    assert [f"{e['operation']}/{e['status']}" for e in page["events"]] == server.told(one) and page["has_more"] is False
    assert [e["id"] for e in cli.json("lifecycle", "events", "--sandbox-id", one, "--operation", "create")["events"]] == [page["events"][0]["id"]]
    lines = cli("lifecycle", "stream", "--sandbox-id", one, "--max-events", "2", "--after-event-id", page["events"][0]["id"]).stdout.splitlines()
    assert [json.loads(line)["id"] for line in lines] == [e["id"] for e in page["events"][1:]]


def test_webhooks_are_managed(cli):
    made = cli.json("lifecycle", "webhooks", "create", "--url", "https://example.com/hook", "--operation", "fork", "--operation", "hibernate",
                    "--signing-secret", "a secret of sixteen", "--disabled")
    assert made["enabled"] is False and made["has_signing_secret"] is True and "a secret" not in json.dumps(made)
    assert made["id"] in {w["id"] for w in cli.json("lifecycle", "webhooks", "list")}
    assert cli.json("lifecycle", "webhooks", "update", made["id"], "--operation", "create")["operations"] == ["create"]
    assert cli.json("lifecycle", "webhooks", "deliveries", made["id"]) == []
    cli("lifecycle", "webhooks", "delivery", made["id"], "whd_" + "0" * 32, exit=3)
    cli("lifecycle", "webhooks", "delete", made["id"])
    cli("lifecycle", "webhooks", "get", made["id"], exit=3)


def test_our_program_shows_the_tree_and_what_differs_and_forks_many_at_once(ours, server, one):
    children = [c["id"] for c in ours.json("sandbox", "fork", one, "--count", "2")]
    server.out(children[0], "echo new > /srv/new")
    tree = ours("sandbox", "tree", one).stdout
    assert all(each in tree for each in (one, *children))
    assert "/srv/new" in ours("sandbox", "diff", children[0], one).stdout
    for each in children:
        server.destroy(each)


def test_our_program_sends_a_delivery_again(ours, own_server, receiver, tmp_path):
    server = own_server(config={"node": {"driver": "fake", "checkpoint_dir": str(tmp_path)}, "webhooks": {"allow_private": True}})
    env = {"NULLSPACE_API_URL": server.url, "NULLSPACE_API_KEY": server.key}
    to = receiver()
    hook = ours.json("lifecycle", "webhooks", "create", "--url", to.url, "--operation", "create", "--signing-secret", "a secret of sixteen", env=env)["id"]
    server.create()
    done = lambda: [d["id"] for d in ours.json("lifecycle", "webhooks", "deliveries", hook, env=env) if d["delivery_status"] == "succeeded"]
    [delivery] = until("it is delivered", done, 30, 0.3)
    ours("lifecycle", "webhooks", "redeliver", hook, delivery, env=env)
    until("it has come again", lambda: len(to.requests) == 2, 30)
