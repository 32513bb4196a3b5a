"""What servers hold on the host: processes, namespaces, links, firewall tables, mounts, control groups,
claims of slots, loop devices. Taken before and after, the difference is what leaked.

Processes are told by the data directory they see (the jail binds it, so it stands in their mount table);
most other things bear the instance of their server in their names, eight digits made from its data
directory, so that what another server on this host does at the same time is not mistaken for a leak.
"""

import hashlib
import json
import os
import re
import subprocess
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
CLAIMS = Path("/run/nullspace/slots")
OWNER = re.compile(r"nullspace[-_]([0-9a-f]{8})(?![0-9a-f])")
# The floor program of tests/perf may run beside a server; and the first namespace of a host makes a mount that stays.
NOT_OURS = ("floor-",)
STAYS = {"mount /run/netns"}


def processes(directory: Path) -> set[str]:
    """Processes started with a path below `directory`, or jailed with something from there in view."""
    needle, home, found = str(directory), os.readlink("/proc/self/ns/mnt"), set()
    for proc in Path("/proc").glob("[0-9]*"):
        if int(proc.name) == os.getpid():
            continue
        try:
            command = (proc / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            jailed = os.readlink(proc / "ns/mnt") != home
            if needle in command or (jailed and needle in (proc / "mountinfo").read_text(errors="replace")):
                found.add(f"process {proc.name}: {command[:120]}")
        except OSError:
            continue  # gone, or a kernel thread
    return found


def _run(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


def instance(data_dir: Path) -> str:
    """What a server's things on the host are named by."""
    return hashlib.sha256(os.fsencode(os.path.realpath(data_dir))).hexdigest()[:8]


def claims() -> dict[str, str]:
    """The instance that each slot of the host belongs to."""
    found = {}
    for claim in CLAIMS.glob("[0-9]*"):
        try:
            found[claim.name] = claim.read_text().strip()
        except OSError:
            continue  # given back at this moment
    return found


def inventory(ours: set[str]) -> set[str]:
    """Everything but processes, as lines that a person can read, without what is named for another instance than `ours`."""
    owners = claims()
    found = {f"slot {index} of nullspace-{owner}" for index, owner in owners.items()}
    if Path("/run/netns").is_dir():
        found |= {f"network namespace {p.name}" for p in Path("/run/netns").glob("*")}
    for link in json.loads(_run("ip", "-json", "link", "show") or "[]"):
        owner = owners.get(link["ifname"].removeprefix("nsv")) if link["ifname"].startswith("nsv") else None
        found.add(f"link {link['ifname']}" + (f" of nullspace-{owner}" if owner else ""))
    tables = json.loads(_run("nft", "--json", "list", "tables"))["nftables"]
    found |= {f"nft table {t['table']['family']} {t['table']['name']}" for t in tables if "table" in t}
    found |= {f"mount {line.split()[4]}" for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    found |= {f"control group {group}" for group, _, _ in os.walk(CGROUPS) if "nullspace" in group}
    found |= {f"loop {line}" for line in _run("losetup", "--noheadings", "--output", "BACK-FILE").splitlines()}

    def counts(line: str) -> bool:
        named = OWNER.search(line)
        return line not in STAYS and not any(word in line for word in NOT_OURS) and (named is None or named[1] in ours)

    return {line for line in found if counts(line)}


def free_mib(place: Path) -> float:
    space = os.statvfs(place)
    return space.f_bavail * space.f_frsize / (1 << 20)


def held(data_dir: Path) -> set[str]:
    """All that one server holds on the host now."""
    mine = instance(data_dir)
    return {line for line in inventory({mine}) if mine in line} | processes(data_dir)
