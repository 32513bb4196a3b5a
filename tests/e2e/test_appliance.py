"""The program as an operator has it: its directory, its key, its health, its refusals at start."""

import stat
import subprocess

from appliance import binary


def test_the_first_key_is_for_its_owners_eyes_and_the_log_says_where_it_is(server):
    key = server.data_dir / "admin.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert str(key) in server.text() and server.key not in server.text()


def test_a_second_server_on_the_same_directory_is_refused(server):
    again = subprocess.run([binary(), "server", "--data-dir", server.data_dir, "--listen", "127.0.0.1:0"], capture_output=True, text=True, timeout=60)
    assert again.returncode != 0
    assert str(server.data_dir) in again.stderr and "in use" in again.stderr, again
    assert server.call("GET", "/healthz", key=None).status == 200


def test_a_configuration_that_is_wrong_is_refused_with_the_name_of_what_is_wrong(tmp_path):
    config = tmp_path / "config.toml"
    for text, word in (("[node]\nshoe_size = 1\n", "shoe_size"), ("[node]\nshapes = [\"big\"]\n", "big"), ("nonsense", "config.toml")):
        config.write_text(text)
        done = subprocess.run([binary(), "server", "--data-dir", tmp_path / "data", "--listen", "127.0.0.1:0", "--config", config],
                              capture_output=True, text=True, timeout=60)
        assert done.returncode != 0 and word in done.stderr, done


def test_an_address_in_use_is_refused_by_its_name(server, tmp_path):
    address = server.url.removeprefix("http://")
    done = subprocess.run([binary(), "server", "--data-dir", tmp_path / "data", "--listen", address], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and address in done.stderr, done
