"""One server for most journeys, servers of their own for the faults; logs and leaks are part of every result.

    NULLSPACE_BIN     the program (default: bin/nullspace)
    NULLSPACE_CACHE   where the guest image and the checkpoints are
    NULLSPACE_E2E_KEEP=1   keeps the working directory even when all is well
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from nullspace import Sandbox

import host
from appliance import Appliance, binary, cache, until
from command_line import PUBLIC, Cli
from receiver import Receiver

failed = False
# Tests give programs another home; the image stays where it is.
os.environ["NULLSPACE_CACHE"] = str(cache())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    global failed
    report = yield
    failed = failed or report.failed
    return report


def pytest_collection_modifyitems(items):
    # The faults last: they take the longest, and what they show stands on the rest.
    items.sort(key=lambda item: item.path.name.startswith("test_fault"))


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="session")
def workspace():
    """The directory of this run; it stays when something failed. Short, for the sockets in it."""
    directory = Path(tempfile.mkdtemp(prefix="ns-e2e-"))
    yield directory
    if failed or os.environ.get("NULLSPACE_E2E_KEEP"):
        print(f"\nservers' data and logs are in {directory}")
    else:
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def servers():
    """Every server of this run: for the look at its log, and at what it leaves."""
    return []


@pytest.fixture(scope="session", autouse=True)
def nothing_left(workspace, servers):
    """After the last server ended, the host is as it was."""
    before = host.inventory(set())
    yield
    ours, extra = {host.instance(server.data_dir) for server in servers}, None

    def clean():
        nonlocal extra
        extra = sorted((host.inventory(ours) - before) | host.processes(workspace))
        return not extra

    try:
        until("nothing is left on the host", clean, 30, 0.5)
    except AssertionError:
        pytest.fail("left on the host after every server ended:\n  " + "\n  ".join(extra), pytrace=False)


@pytest.fixture(scope="session")
def server(workspace, nothing_left, servers):
    """The server that most tests share."""
    assert binary().exists(), f"{binary()} is not there: `make build`, or name another in NULLSPACE_BIN"
    server = Appliance(workspace / "main")
    servers.append(server)
    server.start()
    yield server
    server.end()


@contextlib.contextmanager
def making(workspace, servers, whose: str):
    """Makes servers of their own, which end with it, whatever happened."""
    made = []

    def make(wait: bool = True, **more) -> Appliance:
        directory = workspace / f"s{len(servers)}"
        directory.mkdir()
        (directory / "test").write_text(whose + "\n")
        made.append(Appliance(directory, **more))
        made[-1].config["node"].setdefault("ready_slots", 8)  # quicker than a host's full set, and as good here
        servers.append(made[-1])
        return made[-1].start(wait)

    yield make
    for server in made:
        server.end()
        left = host.held(server.data_dir)
        assert not left, "left on the host by a server that ended:\n  " + "\n  ".join(sorted(left))


@pytest.fixture
def own_server(workspace, nothing_left, servers, request):
    """Makes servers for this test alone: own_server(config=…, data_dir=…)."""
    with making(workspace, servers, request.node.nodeid) as make:
        yield make


@pytest.fixture(scope="module")
def module_server(workspace, nothing_left, servers, request):
    """The same for the tests of one file."""
    with making(workspace, servers, request.node.nodeid) as make:
        yield make


@pytest.fixture
def small_disk(workspace):
    """A file system of 1 GiB for a data directory."""
    image, place = workspace / "disk.img", workspace / "disk"
    place.mkdir()
    with open(image, "wb") as f:
        f.truncate(1 << 30)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)
    image.unlink()
    place.rmdir()


@pytest.fixture(autouse=True)
def clean_logs(servers):
    """An ERROR in a server's log that the test did not expect fails the test."""
    before = {id(s): len(s.unexpected_errors()) for s in servers if s.log.exists()}
    yield
    news = [line for s in servers if s.log.exists() for line in s.unexpected_errors()[before.get(id(s), 0):]]
    if news:
        pytest.fail("unexpected errors in a server's log:\n  " + "\n  ".join(news[:20]), pytrace=False)


@pytest.fixture(scope="session")
def client_env(server, workspace):
    """The environment in which a user of the shared server works: its address and key, and no other configuration."""
    home = workspace / "home"
    home.mkdir(exist_ok=True)
    return {"NULLSPACE_API_URL": server.url, "NULLSPACE_API_KEY": server.key, "HOME": str(home), "XDG_CONFIG_HOME": str(home),
            "NO_COLOR": "1"}


@pytest.fixture(scope="session")
def as_user(client_env, workspace):
    """The same environment for the public client inside this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in client_env.items():
            patch.setenv(name, value)
        patch.chdir(workspace / "home")
        yield


@pytest.fixture
def receiver():
    """Makes endpoints for webhooks: receiver(answer)."""
    made = []

    def make(answer=None) -> Receiver:
        made.append(Receiver(answer))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module", params=["public", "ours"])
def cli(request, client_env, workspace):
    """Each of the two programs for the command line."""
    return Cli({"public": PUBLIC, "ours": binary()}[request.param], client_env, workspace / "home")


@pytest.fixture(scope="module")
def ours(client_env, workspace):
    """Our program for the command line."""
    return Cli(binary(), client_env, workspace / "home")


@pytest.fixture(scope="session")
def box(as_user):
    """A sandbox of the public client that tests share; they leave it usable."""
    with Sandbox.create(timeout=1800) as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def sandbox(server):
    """The ID of a sandbox of the smallest size that tests share over plain HTTP; they leave it usable."""
    made = server.create(timeout_ms=1_800_000)
    yield made
    server.destroy(made)


@pytest.fixture
def temporary(server):
    """Makes sandboxes for this test alone: temporary(**fields) is an ID."""
    made = []

    def make(**fields) -> str:
        made.append(server.create(**fields))
        return made[-1]

    yield make
    for one in made:
        server.destroy(one)
