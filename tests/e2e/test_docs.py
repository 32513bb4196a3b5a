"""Every example in README.md and docs/ that is marked runs as it stands, against a real server.

A fenced block whose info string is `python test` or `sh test` is an example that is run: in an empty
directory, as a program of its own, with NULLSPACE_API_URL and NULLSPACE_API_KEY set, the public client
importable and our `nullspace` first in the PATH. It passes if it exits with 0. A block that follows and
is marked `text output` (or `json output`) is what it must have printed; a line of three dots stands for
any lines, and three dots in a line for anything.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from appliance import REPOSITORY, binary

FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)(?P=ticks)`*\s*$", re.MULTILINE | re.DOTALL)
RUN = {"python": [sys.executable, "-B"], "sh": ["sh", "-eu"], "bash": ["bash", "-euo", "pipefail"]}


def blocks(text: str):
    """Line, info words and body of each fenced block, without the indentation of the list it may stand in."""
    for found in FENCE.finditer(text):
        indent = found["indent"]
        body = "".join(line.removeprefix(indent) for line in found["body"].splitlines(keepends=True))
        yield text.count("\n", 0, found.start()) + 1, found["info"].split(), body


def examples():
    for path in [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]:
        if not path.exists():
            continue
        last = None
        for line, info, body in blocks(path.read_text()):
            if len(info) >= 2 and info[1] == "test":
                assert info[0] in RUN, f"{path}:{line}: no way to run {info[0]!r}; there are {', '.join(RUN)}"
                last = {"name": f"{path.relative_to(REPOSITORY)}:{line}", "language": info[0], "body": body, "output": None}
                yield last
            elif len(info) >= 2 and info[1] == "output" and last and last["output"] is None:
                last["output"] = body
            else:
                last = None


def as_expected(pattern: str) -> re.Pattern:
    lines = []
    for line in pattern.strip("\n").splitlines():
        lines.append(r"(?:[^\n]*\n)*?" if line.strip() == "..." else ".*".join(map(re.escape, line.rstrip().split("..."))) + r"[ \t]*\n")
    return re.compile("".join(lines))


EXAMPLES = list(examples())


@pytest.mark.skipif(not EXAMPLES, reason="no example in the documentation is marked")
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e["name"])
def test_a_documented_example_does_what_it_says(example, client_env, tmp_path):
    suffix = {"python": ".py"}.get(example["language"], ".sh")
    (tmp_path / f"example{suffix}").write_text(example["body"])
    place = tmp_path / "here"
    place.mkdir()
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "nullspace").symlink_to(binary())
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run([*RUN[example["language"]], tmp_path / f"example{suffix}"], cwd=place, capture_output=True, text=True, timeout=240,
                          env={k: v for k, v in os.environ.items() if not k.startswith("NULLSPACE_")} | client_env | {"PATH": path})
    assert done.returncode == 0, f"{example['name']} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
    if example["output"] is not None:
        printed = done.stdout.strip("\n") + "\n"
        assert as_expected(example["output"]).fullmatch(printed), f"{example['name']} printed\n{printed}instead of\n{example['output']}"


def test_the_patterns_of_expected_output_match_what_they_should():
    assert as_expected("a\n...\nd sb_... e\n").fullmatch("a\nb\nc\nd sb_123 e\n")
    assert as_expected("a\n...\n").fullmatch("a\n")
    assert not as_expected("a\n").fullmatch("a\nb\n")
    assert [(i, b) for _, i, b in blocks("x\n\n  ```sh test\n  a\n    b\n  ```\n\n```text output\n...\n```\n")] == [
        (["sh", "test"], "a\n  b\n"), (["text", "output"], "...\n")]
