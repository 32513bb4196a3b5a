"""The same server over machines in memory: what anyone can try without virtualisation, and what the API's tests stand on."""


def test_a_server_with_the_fake_driver_makes_uses_and_destroys_sandboxes(own_server, tmp_path):
    server = own_server(config={"node": {"driver": "fake", "checkpoint_dir": str(tmp_path / "checkpoints")}})
    sandbox = server.create(envs={"COLOUR": "blue"})
    ran = server.call("POST", f"/v1/sandboxes/{sandbox}/exec", {"command": "echo", "args": ["hello"]}).json
    assert (ran["exit_code"], ran["stdout"]) == (0, "hello\n")
    assert "COLOUR=blue" in server.call("POST", f"/v1/sandboxes/{sandbox}/exec", {"command": "env"}).json["stdout"]
    refused = server.call("POST", f"/v1/sandboxes/{sandbox}/exec", {"command": "no-such-word"})
    assert refused.status == 502 and refused.json["code"] == "exec_failed"
    late = server.call("POST", f"/v1/sandboxes/{sandbox}/exec", {"command": "sleep", "args": ["60"], "timeout_secs": 1})
    assert late.status == 504 and late.json["code"] == "exec_timeout"
    path = {"path": "/srv/a/b.txt"}
    assert server.call("POST", f"/v1/sandboxes/{sandbox}/files/write", path | {"content": "x" * 200_000}).status == 200
    assert server.call("POST", f"/v1/sandboxes/{sandbox}/files/read", path).json["content"] == "x" * 200_000
    server.destroy(sandbox)
    assert server.call("GET", f"/v1/sandboxes/{sandbox}").status == 404
