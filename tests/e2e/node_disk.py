"""Whether what lies in a node's directory adds up: every machine, checkpoint and layer is there for somebody,
nobody's layer is missing, and no two write to the same one.

The node may remove a file at any moment: one that is listed and then gone is looked at as gone.

The records are the node's own (`machines/*/machine.json`, `checkpoints/*/checkpoint.json`); what is listed
comes from the API.
"""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path


def _records(directory: Path, name: str) -> dict[str, dict | None]:
    """The record of each subdirectory; none where there is none."""
    found = {}
    for one in directory.glob("*"):
        try:
            found[one.name] = json.loads((one / name).read_text())
        except (FileNotFoundError, NotADirectoryError):
            found[one.name] = None
    return found


def _stat(path: Path) -> os.stat_result | None:
    """What the file is; none if it is not there."""
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


def machines(server) -> dict[str, dict | None]:
    return _records(server.data_dir / "node/machines", "machine.json")


def checkpoints(server) -> dict[str, dict | None]:
    return _records(server.data_dir / "node/checkpoints", "checkpoint.json")


def layers(server) -> set[str]:
    return {path.stem for path in (server.data_dir / "node/layers").glob("*")}


def amiss(server) -> list[str]:
    """What does not add up, as lines that a person can read. Of a server that does nothing at this moment."""
    found, node = [], server.data_dir / "node"
    listed = {s["id"]: s["status"] for s in server.listed()}
    kept = {s["id"] for s in server.snapshots()}
    own, frozen = machines(server), checkpoints(server)
    running = {one for one, status in listed.items() if status == "running"}
    found += [f"{one} is listed as {status}" for one, status in listed.items() if status not in ("running", "paused")]
    found += [f"{one} runs and has no machine" for one in running - set(own)]
    found += [f"machines/{one} belongs to nobody" for one in set(own) - running]
    found += [f"machines/{one} has no record" for one, record in own.items() if record is None]
    found += [f"{one} is listed and has no checkpoint" for one in kept - set(frozen)]
    found += [f"checkpoints/{one} belongs to nobody" for one in set(frozen) - kept]
    found += [f"checkpoints/{one} has no record" for one, record in frozen.items() if record is None]

    tops: dict[int, str] = {}
    for one, record in own.items():
        if record is None:
            continue
        if (top := _stat(node / "machines" / one / record["top"])) is None:
            found.append(f"{one} has no disk")
            continue
        if (other := tops.setdefault(top.st_ino, one)) != one:
            found.append(f"{one} and {other} write to the same layer")
        if record["freezing"]:
            found.append(f"{one} is still being captured")
    needed = {layer for record in (own | frozen).values() if record for layer in record["layers"]}
    found += [f"layer {layer} is needed and missing" for layer in needed - layers(server)]
    found += [f"layer {layer} is needed by nobody" for layer in layers(server) - needed]
    for path in (node / "layers").glob("*"):
        if (layer := _stat(path)) is None:
            found.append(f"layer {path.stem} went away just now")
            continue
        if other := tops.get(layer.st_ino):
            found.append(f"{other} writes to the frozen layer {path.stem}")
        if layer.st_mode & 0o222:
            found.append(f"layer {path.stem} can be written to")
    running_processes = set(server.monitors())
    found += [f"the monitor of {one} is gone" for one in running - running_processes]
    return found


def used_mb(path: Path) -> float:
    """Megabytes on the disk of all below a directory."""
    return sum(file.st_blocks * 512 for _, file in files(path)) / 1e6


def files(directory: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every regular file below a directory, and what it is."""
    for parent, _, names in os.walk(directory):
        for path in (Path(parent, name) for name in names):
            if (file := _stat(path)) is not None and stat.S_ISREG(file.st_mode):
                yield path, file
