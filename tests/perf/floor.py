#!/usr/bin/env python3
"""The floor: how fast this host captures and clones a running virtual machine with nothing of ours in it.

It boots the image's kernel and root file system under QEMU with the memory in a file, with an
init of thirty lines and a Python server inside instead of the agent. It captures that machine
and restores copy-on-write clones of it, each in a network namespace of its own with the same
address inside; then it forks a running clone: its device state alone, and the memory it has
changed over a copy of the base file. Create, exec, fork and file transfer are judged as ratios
to these figures (see bench.py, which imports this module and measures both by turns).

Deliberately absent: the agent, the API, jails, firewalls, and any reuse of our own code.

Needs root, QEMU, iproute2, cpio, gzip, a C compiler with a static libc, and a guest image
(`make image`). One figure a line; what it makes lies in --work and is made anew every time.
"""
import argparse
import array
import ctypes
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PARTS = "restore transfer fork burst".split()
SERVER = """
import os, socket, threading
s = socket.create_server(("0.0.0.0", 7000), backlog=64)
print("READY", flush=True)
def serve(c):
    c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while (word := c.recv(1)):
        if word == b"P": c.sendall(b".")
        if word == b"X": os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0); c.sendall(b".")
        if word == b"G":
            for _ in range(64): c.sendall(bytes(1 << 20))
            break
        if word == b"S":
            while c.recv(1 << 20): pass
            c.sendall(b".")
    c.close()
while True: threading.Thread(target=serve, args=(s.accept()[0],), daemon=True).start()
"""
INIT = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

static void up(int s, const char *name, const char *address, const char *mask) {
    struct ifreq r = {0};
    struct sockaddr_in *in = (struct sockaddr_in *)&r.ifr_addr;
    strcpy(r.ifr_name, name);
    in->sin_family = AF_INET;
    inet_pton(AF_INET, address, &in->sin_addr);
    if (ioctl(s, SIOCSIFADDR, &r)) err(1, "address of %s", name);
    inet_pton(AF_INET, mask, &in->sin_addr);
    if (ioctl(s, SIOCSIFNETMASK, &r)) err(1, "mask of %s", name);
    r.ifr_flags = IFF_UP | IFF_RUNNING;
    if (ioctl(s, SIOCSIFFLAGS, &r)) err(1, "%s up", name);
}

int main(void) {
    static char server[8192], path[32];
    if (mount("d", "/dev", "devtmpfs", 0, "")) err(1, "devtmpfs");
    int tty = open("/dev/ttyS0", O_RDWR);
    dup2(tty, 0), dup2(tty, 1), dup2(tty, 2);
    for (int i = 0, f; sprintf(path, "/m/%02d.ko", i), (f = open(path, O_RDONLY)) >= 0; i++, close(f))
        if (syscall(SYS_finit_module, f, "", 0)) warn("%s", path);
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    up(s, "lo", "127.0.0.1", "255.0.0.0");
    up(s, "eth0", "10.0.0.2", "255.255.255.252");
    int f = open("/server.py", O_RDONLY);
    if (read(f, server, sizeof server - 1) <= 0) err(1, "server.py");
    if (mount("/dev/vda", "/mnt", "ext4", 0, "")) err(1, "root");
    if (mount("/dev", "/mnt/dev", "", MS_MOVE, "")) err(1, "move /dev");
    if (chroot("/mnt") || chdir("/")) err(1, "chroot");
    execl("/usr/bin/python3", "python3", "-uc", server, (char *)0);
    err(1, "python3");
}
"""
LIBC, NETNS, LOCK = ctypes.CDLL(None), 0x40000000, threading.Lock()


def cache() -> Path:
    return Path(os.environ.get("NULLSPACE_CACHE") or Path.home() / ".cache/nullspace")


def sh(*cmd, **kw):
    subprocess.run(cmd, check=True, **{"stdout": subprocess.DEVNULL, **kw})


def modules(initrd: Path) -> list[bytes]:
    """The kernel modules in the image's initrd, in the order in which they load."""
    data, files = initrd.read_bytes(), {}
    while data[:6] == b"070701":
        size, name_size = int(data[54:62], 16), int(data[94:102], 16)
        name = data[110:110 + name_size - 1].decode().removeprefix("./")
        start = (110 + name_size + 3) // 4 * 4
        files[name] = data[start:start + size]
        data = data[start + (size + 3) // 4 * 4:]
    if "modules/order" not in files:
        sys.exit(f"{initrd}: no modules/order in it; is the guest image of another version?")
    return [files[f"modules/{m}"] for m in files["modules/order"].decode().split()]


class Slot:
    """A network namespace with a tap, made before it is needed."""

    def __init__(self, name: str):
        self.name = f"floor-{os.getpid()}-{name}"
        sh("ip", "netns", "add", self.name)
        for words in ("link set lo up", "tuntap add tap0 mode tap", "addr add 10.0.0.1/30 dev tap0", "link set tap0 up"):
            sh("ip", "-n", self.name, *words.split())

    def connect(self) -> socket.socket:
        with LOCK:  # a socket keeps the namespace it was made in
            home, inside = os.open("/proc/thread-self/ns/net", os.O_RDONLY), os.open(f"/run/netns/{self.name}", os.O_RDONLY)
            if LIBC.setns(inside, NETNS):
                sys.exit(f"{self.name}: cannot enter the namespace")
            s = socket.socket()
            LIBC.setns(home, NETNS)
            os.close(home), os.close(inside)
        s.connect(("10.0.0.2", 7000))
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return s

    def remove(self):
        sh("ip", "netns", "del", self.name)


class Vm:
    def __init__(self, floor, slot: Slot, memory: Path, state: Path | None = None):
        """Boots with shared memory; or, given a state, restores it over a private view of the memory file."""
        self.t0, self.slot, self.memory = time.perf_counter(), slot, memory
        accel, work = floor.accel, floor.work
        qmp, ser = work / f"{slot.name}.qmp", work / f"{slot.name}.ser"
        self.sockets = (qmp, ser)
        self.proc = subprocess.Popen([
            "ip", "netns", "exec", slot.name,
            "qemu-system-x86_64", "-accel", "tcg,thread=multi" if accel == "tcg" else accel,
            "-M", f"{floor.machine},memory-backend=m0,suppress-vmdesc=on", "-global", "migration.send-configuration=off",
            "-cpu", "max" if accel == "tcg" else "host", "-m", "512",
            "-object", f"memory-backend-file,id=m0,size=512M,mem-path={memory},share={'off' if state else 'on'}",
            "-nodefaults", "-no-user-config", "-display", "none",
            "-serial", f"unix:{ser},server=on,wait=off", "-qmp", f"unix:{qmp},server=on,wait=off",
            "-drive", f"id=d0,file={floor.image}/base.raw,format=raw,if=none,snapshot=on", "-device", "virtio-blk-pci,drive=d0",
            "-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no",
            "-device", "virtio-net-pci,netdev=n0,mac=02:00:00:00:00:02,romfile=",
            "-kernel", f"{floor.image}/vmlinuz", "-initrd", f"{work}/initrd.gz",
            "-append", "console=ttyS0 quiet reboot=t panic=-1", *(["-incoming", "defer"] if state else [])])
        floor.running.append(self)
        self.qmp, self.ser = self.dial(qmp), self.dial(ser)
        self.qmp.readline()
        self("qmp_capabilities")
        if state:
            self("migrate-incoming", uri=f"exec:cat {state}")
            while self("query-status")["status"] == "inmigrate":
                time.sleep(0.001)
            self("cont")

    def dial(self, path):
        while self.proc.poll() is None:
            try:
                s = socket.socket(socket.AF_UNIX)
                s.connect(str(path))
                return s.makefile("rw", errors="replace")
            except OSError:
                time.sleep(0.001)
        sys.exit(f"QEMU ended before it answered on {path}")

    def __call__(self, command, **arguments):
        self.qmp.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.qmp.flush()
        while line := self.qmp.readline():
            reply = json.loads(line)
            if "error" in reply:
                sys.exit(f"{command}: {reply['error']}")
            if "return" in reply:
                return reply["return"]
        sys.exit(f"{command}: QEMU ended")

    def save_devices(self, state: Path):
        """Everything but memory. The name of the command is historic: it needs no Xen."""
        self("xen-save-devices-state", filename=str(state))

    def pid(self) -> int:
        pid = self.proc.pid
        if Path(f"/proc/{pid}/exe").resolve().name == "ip":
            pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
        return pid

    def private_mib(self) -> float:
        rollup = Path(f"/proc/{self.pid()}/smaps_rollup").read_text()
        return int(next(l for l in rollup.splitlines() if l.startswith("Private_Dirty")).split()[1]) / 1024

    def quit(self):
        self("quit")
        self.proc.wait()
        for s in self.sockets:
            s.unlink(missing_ok=True)

    def copy_changed(self, out: Path) -> float:
        """Writes the pages that this clone has changed over `out`, a copy of its memory file; returns MB."""
        pid = self.pid()
        line = next(l for l in open(f"/proc/{pid}/maps") if l.rstrip().endswith(str(self.memory)))
        start, end = (int(x, 16) for x in line.split()[0].split("-"))
        with open(f"/proc/{pid}/pagemap", "rb") as f:
            f.seek(start // 4096 * 8)
            entries = array.array("Q", f.read((end - start) // 4096 * 8))
        pages = [i for i, e in enumerate(entries) if e >> 62 and not e >> 61 & 1]  # present or swapped, and not the file's
        with open(f"/proc/{pid}/mem", "rb", 0) as memory, open(out, "r+b") as f:
            for i in pages:
                memory.seek(start + i * 4096)
                f.seek(i * 4096)
                f.write(memory.read(4096))
        return len(pages) * 4096 / 1e6


def ask(s, word):
    t = time.perf_counter()
    s.sendall(word)
    if not s.recv(1):
        sys.exit("the guest hung up")
    return time.perf_counter() - t


class Floor:
    """The captured machine and what was measured of it, in seconds, MB/s and MiB. A context: leaving it ends all it started."""

    def __init__(self, accel="tcg", machine="pc", work: Path | None = None, image: Path | None = None):
        self.accel, self.machine = accel, machine
        self.image = (image or cache() / "image/current").resolve()
        self.work = (work or cache() / "floor") / str(os.getpid())
        self.memory, self.state = self.work / "memory", self.work / "state"
        self.figures: dict[str, list[float]] = {}
        self.slots: list[Slot] = []
        self.running: list[Vm] = []
        self.kept: list[Vm] = []

    def __enter__(self):
        if not (self.image / "vmlinuz").exists():
            sys.exit(f"{self.image}: no guest image; `make image` makes it")
        self.work.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_):
        for vm in self.running:
            if vm.proc.poll() is None:
                vm.proc.kill()
            vm.proc.wait()
        for s in self.slots:
            s.remove()
        shutil.rmtree(self.work)

    def note(self, name, *values):
        self.figures.setdefault(name, []).extend(values)

    def slot(self, name) -> Slot:
        self.slots.append(Slot(name))
        return self.slots[-1]

    def prepare(self):
        """Makes the initrd: the init, the modules, the server."""
        root = self.work / "initrd"
        for d in ("dev", "mnt", "m"):
            (root / d).mkdir(parents=True, exist_ok=True)
        (self.work / "init.c").write_text(INIT)
        sh("cc", "-O1", "-static", "-o", str(root / "init"), str(self.work / "init.c"))
        for i, content in enumerate(modules(self.image / "initrd.img")):
            (root / f"m/{i:02}.ko").write_bytes(content)
        (root / "server.py").write_text(SERVER)
        sh("sh", "-c", "find . | cpio -o -H newc --quiet | gzip -1 > ../initrd.gz", cwd=root)

    def boot(self):
        """Boots the parent, warms it, captures it and ends it."""
        parent = Vm(self, self.slot("parent"), self.memory)
        said = []
        while "READY" not in (line := parent.ser.readline()):
            said.append(line)
            if not line:
                sys.exit("the guest ended before it was ready; it said:\n" + "".join(said))
        self.note("boot_ms", time.perf_counter() - parent.t0)
        warm = parent.slot.connect()  # what a ready template would have run already
        for _ in range(3):
            ask(warm, b"P"), ask(warm, b"X")
        warm.close()
        time.sleep(0.5)  # part of the job: the guest comes to rest, as a template's does
        t = time.perf_counter()
        parent("stop")
        parent.save_devices(self.state)
        self.note("capture_ms", time.perf_counter() - t)
        parent.quit()

    def clone(self, slot, memory=None, state=None):
        """Restores a clone: the machine, its connection, and the seconds until running, answering, having run a command."""
        c = Vm(self, slot, memory or self.memory, state or self.state)
        up = time.perf_counter() - c.t0
        s = slot.connect()
        ask(s, b"P")
        answered = time.perf_counter() - c.t0
        ask(s, b"X")
        return c, s, up, answered, time.perf_counter() - c.t0

    def restore(self, name, keep=False):
        """One clone, all that is measured of a single one; it is ended unless kept for the other parts."""
        c, s, up, answered, ran = self.clone(self.slot(name))
        self.note("restore_running_ms", up)
        self.note("restore_first_answer_ms", answered)
        self.note("restore_first_command_ms", ran)
        self.note("round_trip_ms", *(ask(s, b"P") for _ in range(20)))
        self.note("command_ms", *(ask(s, b"X") for _ in range(5)))
        self.note("private_mib", c.private_mib())
        if keep:
            self.kept.append(c)
        else:
            c.quit()

    def transfer(self):
        """64 MiB out of a clone and into it."""
        c = self.kept[0]
        t, s, got = time.perf_counter(), c.slot.connect(), 0
        s.sendall(b"G")
        while (d := s.recv(1 << 20)):
            got += len(d)
        self.note("down_mb_s", got / (time.perf_counter() - t) / 1e6)
        t, s = time.perf_counter(), c.slot.connect()
        s.sendall(b"S")
        for _ in range(64):
            s.sendall(bytes(1 << 20))
        s.shutdown(socket.SHUT_WR)
        s.recv(1)
        self.note("up_mb_s", 64 * 1.048576 / (time.perf_counter() - t))

    def fork(self, n):
        """Forks a kept clone while it runs."""
        c, child, state = self.kept[n], self.work / f"memory.{n}", self.work / f"state.{n}"
        t = time.perf_counter()
        sh("cp", "--sparse=always", str(self.memory), str(child))  # of an immutable file: no one waits for it
        self.note("fork_base_copy_ms", time.perf_counter() - t)
        t = time.perf_counter()
        c("stop")
        c.save_devices(state)
        self.note("fork_changed_mb", c.copy_changed(child))
        c("cont")
        self.note("fork_pause_ms", time.perf_counter() - t)
        forked = self.clone(self.slot(f"f{n}"), child, state)
        self.note("fork_first_command_ms", forked[-1])
        ask(c.slot.connect(), b"X")  # the parent goes on
        forked[0].quit()
        child.unlink()

    def burst(self, n, name="b"):
        """`n` clones at once, until each has run its command."""
        ready = [self.slot(f"{name}{i}") for i in range(n)]
        t = time.perf_counter()
        with ThreadPoolExecutor(n) as pool:
            burst = list(pool.map(self.clone, ready))
        self.note(f"burst_{n}_wall_ms", time.perf_counter() - t)
        for c, *_ in burst:
            c.quit()

    def end_kept(self):
        for c in self.kept:
            c.quit()
        self.kept.clear()

    def medians(self) -> dict[str, float]:
        return {name: round(statistics.median(values) * (1e3 if name.endswith("_ms") else 1), 2) for name, values in self.figures.items()}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--accel", default="tcg", choices=["tcg", "kvm"])
    p.add_argument("--machine", default="pc")
    p.add_argument("--clones", type=int, default=20, help="restored one after the other")
    p.add_argument("--burst", type=int, default=20, help="restored all at once")
    p.add_argument("--parts", default=",".join(PARTS), help=f"which of {', '.join(PARTS)} to run, separated by commas")
    p.add_argument("--work", type=Path, help="where its files lie (default: floor/ in the cache)")
    p.add_argument("--image", type=Path, help="the guest image (default: image/current in the cache)")
    p.add_argument("--json", type=Path, help="writes the medians there too")
    args = p.parse_args()
    parts = args.parts.split(",")
    if wrong := [x for x in parts if x not in PARTS]:
        p.error(f"--parts: no part is called {wrong[0]!r}; there are {', '.join(PARTS)}")
    keep = 4 if "fork" in parts else 1 if "transfer" in parts else 0
    with Floor(args.accel, args.machine, args.work, args.image) as floor:
        floor.prepare()
        floor.boot()
        for n in range(max(args.clones if "restore" in parts else 0, keep)):
            floor.restore(f"c{n}", keep=n < keep)
        if "transfer" in parts:
            floor.transfer()
        if "fork" in parts:
            for n in range(1, 4):
                floor.fork(n)
        floor.end_kept()
        if "burst" in parts:
            floor.burst(args.burst)
    out = floor.medians()
    for name, values in floor.figures.items():
        scale = 1e3 if name.endswith("_ms") else 1
        print(f"{name} {out[name]} (min {min(values) * scale:.2f}, max {max(values) * scale:.2f}, n {len(values)})")
    if args.json:
        args.json.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
