"""Programs that run inside a sandbox while it is captured and restored, and how to ask them afterwards."""

import hashlib
import time

from appliance import until

# Counts for as long as everything it stands on goes on: its memory, a timer, an open file, and a TCP
# connection from the guest to itself.
COUNTER = """
import os, socket, time
server = socket.create_server(("127.0.0.1", 0))
if os.fork() == 0:
    line, _ = server.accept()
    while data := line.recv(64): line.sendall(data)
    os._exit(0)
line = socket.create_connection(server.getsockname())
out, n = open("/tmp/count", "w"), 0
while True:
    n += 1
    line.sendall(b"%d" % n)
    assert int(line.recv(64)) == n
    out.seek(0)
    out.write(f"{os.getpid()} {n}\\n")
    out.flush()
    time.sleep(0.02)
"""

# Holds so many mebibytes of changed memory that cannot be made smaller, and says for each line of its input what they are.
HOLDER = """
import hashlib, sys
held = hashlib.shake_256(b"held").digest(int(sys.argv[1]) << 20)
print("held", flush=True)
for line in sys.stdin: print(line.strip(), hashlib.sha256(held).hexdigest(), flush=True)
"""

# Draws from the kernel's generator, through a file that stays open and by the system call, whenever a line
# is read from a pipe; the draw before is always half read.
DRAWER = """
import os
source = open("/dev/urandom", "rb", 0)
source.read(13)
os.path.exists("/tmp/draw") or os.mkfifo("/tmp/draw")
open("/tmp/drawer", "w").write("ready")
while True:
    with open("/tmp/draw") as asked: asked.read()
    with open("/tmp/drawn.new", "w") as out: out.write(source.read(19).hex() + " " + os.getrandom(24).hex())
    os.rename("/tmp/drawn.new", "/tmp/drawn")
"""

# Fills 64 MiB from the kernel's generator, by one read where nothing ends it early, again and again, and tells
# when it was full and the last 32 bytes.
FILLER = """
import os, time
source, room = os.open("/dev/urandom", os.O_RDONLY), memoryview(bytearray(64 << 20))
while True:
    filled = 0
    while filled < len(room): filled += os.readv(source, [room[filled:]])
    print(time.monotonic_ns(), bytes(room[-32:]).hex(), flush=True)
"""

# Draws 32 bytes over and over, and tells when it began to, and what it drew. It pauses so that its log holds it all.
SIPPER = """
import os, time
while True:
    print(time.monotonic_ns(), os.getrandom(32).hex(), flush=True)
    time.sleep(0.001)
"""


def start_counter(server, sandbox: str):
    server.background(sandbox, "python3", "-c", COUNTER)
    until("the counter counts", lambda: server.exec(sandbox, "cat /tmp/count")["stdout"].endswith("\n"), 60)


def count(server, sandbox: str) -> tuple[str, int]:
    """The counter's PID, and how far it is."""
    pid, n = until("the count is there", lambda: server.out(sandbox, "cat /tmp/count"), 60).split()
    return pid, int(n)


def goes_on(server, sandbox: str, since: tuple[str, int]):
    """The same counter has gone on from there, and still does."""
    seen = count(server, sandbox)
    assert seen[0] == since[0] and seen[1] >= since[1], (seen, since)
    until("the counter goes on", lambda: count(server, sandbox)[1] > seen[1], 30)


def start_holder(server, sandbox: str, megabytes: int) -> int:
    """Its PID; it holds all of it by then."""
    pid = server.background(sandbox, "python3", "-c", HOLDER, str(megabytes))
    until("it is held", lambda: "held" in logs(server, sandbox, pid), 120)
    return pid


def held(server, sandbox: str, pid: int, word: str) -> str:
    """The digest of what a holder holds now. Each question has a word of its own."""
    server.done(204, "POST", f"/v1/sandboxes/{sandbox}/processes/{pid}/stdin", {"data": word + "\n"})
    return until("it answers", lambda: [line.split()[1] for line in logs(server, sandbox, pid).splitlines() if line.startswith(word + " ")], 60)[0]


def holds(megabytes: int) -> str:
    """The digest that a holder that was not damaged answers."""
    return hashlib.sha256(hashlib.shake_256(b"held").digest(megabytes << 20)).hexdigest()


def logs(server, sandbox: str, pid: int) -> str:
    return server.done(200, "GET", f"/v1/sandboxes/{sandbox}/processes/{pid}/logs")["stdout"]


def start_drawer(server, sandbox: str):
    server.background(sandbox, "python3", "-c", DRAWER)
    until("it waits", lambda: server.exec(sandbox, "cat /tmp/drawer")["stdout"] == "ready", 60)


def draw(server, sandbox: str) -> list[str]:
    """What it draws now: from its open file, and by the system call."""
    server.out(sandbox, "rm -f /tmp/drawn; echo > /tmp/draw")
    return until("it has drawn", lambda: server.exec(sandbox, "cat /tmp/drawn")["stdout"], 60).split()


def told(server, sandbox: str, pid: int) -> dict[str, str]:
    """What a filler or a sipper drew so far, and when."""
    lines = logs(server, sandbox, pid).split("\n")[:-1]
    return {drawn: at for at, drawn in map(str.split, lines)}


def clock_is_right(server, sandbox: str, within: float = 0.05):
    """The guest's wall clock, read once, is the host's, as far as the time of the call lets see."""
    before = time.time()
    inside = float(server.out(sandbox, "date +%s.%N"))
    after = time.time()
    assert before - within <= inside <= after + within, f"the clock is off by {max(before - inside, inside - after):.3f} s"
