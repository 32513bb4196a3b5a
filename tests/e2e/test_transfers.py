"""Files in bulk: batches, searches, replacements, signed URLs, ranges, watches, resumable uploads."""

import hashlib
import io
import os
import tarfile
import threading
import time
from pathlib import Path

import httpx
import pytest
from nullspace import BatchWriteError, FileUploadError, SandboxError

from appliance import until


def inside(box, line):
    result = box.commands.run(line, shell=True, timeout=110)
    assert result.exit_code == 0, result
    return result.stdout.strip()


# ---- many files at once --------------------------------------------------------------------


def test_a_batch_is_written_in_one_call(box):
    files = [(f"/workspace/batch/{n % 7}/f{n}.txt", f"content {n}" if n % 2 else bytes([n % 256]) * n) for n in range(300)]
    written = box.files.write_files(files)
    assert [f.path for f in written] == [path for path, _ in files]
    assert int(inside(box, "find /workspace/batch -type f | wc -l")) == 300
    assert box.files.read("/workspace/batch/3/f101.txt") == "content 101"
    assert box.files.read("/workspace/batch/4/f102.txt" if 102 % 7 == 4 else f"/workspace/batch/{102 % 7}/f102.txt", format="bytes") == bytes([102]) * 102
    mine = box.files.write_files([("mine/a", "1"), ("mine/b", "2")], user="user")
    assert [(f.path, f.owner) for f in mine] == [("/home/user/mine/a", "user"), ("/home/user/mine/b", "user")]


def test_files_of_a_batch_that_cannot_be_written_do_not_keep_the_others_from_it(box):
    with pytest.raises(BatchWriteError) as refused:
        box.files.write_files([("/tmp/good1", "1"), ("/proc/nothing/here", "2"), ("/workspace/.nullspace/x", "3"), ("/tmp/good2", "4")])
    failed = [f["path"] if isinstance(f, dict) else f.path for f in refused.value.failures]
    assert failed == ["/proc/nothing/here", "/workspace/.nullspace/x"] and len(refused.value.successes) == 2
    assert (box.files.read("/tmp/good1"), box.files.read("/tmp/good2")) == ("1", "4")


# ---- search and replace --------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree(box):
    root = "/workspace/search"
    box.files.write_files([
        (f"{root}/a.py", "import os\n\ndef needle(x):\n    return x\n"),
        (f"{root}/deep/er/b.py", "# needle here\nneedle(1); needle(2)\n"),
        (f"{root}/.hidden/c.txt", "one needle\n"),
        (f"{root}/no.txt", "nothing\n"),
        (f"{root}/odd.txt", "f(a[0]) costs 3.50\n"),
        (f"{root}/binary.bin", b"needle\0needle\n"),
    ])
    box.commands.run(f"ln -s {root} {root}/deep/loop; mkfifo {root}/pipe", shell=True)
    return root


def test_content_is_found_by_expression_or_literally(box, tree):
    found = [(m.file.removeprefix(tree + "/"), m.line, m.content) for m in box.files.find_files(tree, "needle")]
    assert found == [(".hidden/c.txt", 1, "one needle"), ("a.py", 3, "def needle(x):"), ("deep/er/b.py", 1, "# needle here"),
                     ("deep/er/b.py", 2, "needle(1); needle(2)")]
    assert [(m.file, m.line) for m in box.files.find_files(tree, r"^def \w+\(x\)")] == [(f"{tree}/a.py", 3)]
    assert [m.content for m in box.files.find_files(tree, "f(a[0")] == ["f(a[0]) costs 3.50"]  # no expression: taken as it stands
    assert box.files.find_files(tree, "no such text") == []
    assert [m.line for m in box.files.find_files(f"{tree}/a.py", "import")] == [1]


def test_names_are_found_by_glob(box, tree):
    assert box.files.search_files(tree, "*.py") == [f"{tree}/a.py", f"{tree}/deep/er/b.py"]
    assert box.files.search_files(tree, "*.{txt,bin}") == [f"{tree}/.hidden/c.txt", f"{tree}/binary.bin", f"{tree}/no.txt", f"{tree}/odd.txt"]
    assert box.files.search_files(tree, "*.rs") == []
    for ask, pattern in ((box.files.search_files, "[unclosed"), (box.files.find_files, ""), (box.files.search_files, "")):
        with pytest.raises(SandboxError) as refused:
            ask(tree, pattern)
        assert refused.value.code == "invalid_request" and "pattern" in str(refused.value)
    with pytest.raises(SandboxError) as refused:
        box.files.find_files("/no/such/tree", "x")
    assert refused.value.code == "file_not_found"


def test_text_is_replaced_literally_and_counted(box):
    files = [f"/tmp/replace/{n}.txt" for n in range(3)]
    box.files.write_files([(files[0], "a.b a.b axb\n"), (files[1], "none\n"), (files[2], b"a.b\0\n")])
    box.files.set_permissions(files[0], "0604")
    assert box.files.replace_in_files(files, "a.b", "$1\\n") == 2
    assert box.files.read(files[0]) == "$1\\n $1\\n axb\n" and box.files.info(files[0]).mode == "0604"
    assert box.files.read(files[2], format="bytes") == b"a.b\0\n"
    with pytest.raises(SandboxError) as refused:
        box.files.replace_in_files([files[0], "/tmp/replace/missing"], "axb", "changed")
    assert refused.value.code == "file_not_found" and "axb" in box.files.read(files[0])


# ---- raw, ranges, signed -------------------------------------------------------------------


def test_a_part_of_a_file_is_downloaded(server, sandbox):
    data = os.urandom(300_000)
    path = {"path": "/tmp/ranged"}
    assert server.call("PUT", f"/v1/sandboxes/{sandbox}/file", data, query=path).status == 204

    def get(**headers):
        return server.call("GET", f"/v1/sandboxes/{sandbox}/file", query=path, headers=headers)

    whole = get()
    assert (whole.status, whole.body, whole.headers["accept-ranges"]) == (200, data, "bytes")
    for asked, first, last in (("0-0", 0, 0), ("100000-199999", 100_000, 199_999), ("299999-", 299_999, 299_999), ("-5", 299_995, 299_999), ("5-999999", 5, 299_999)):
        part = get(Range=f"bytes={asked}")
        assert (part.status, part.headers["content-range"]) == (206, f"bytes {first}-{last}/300000"), asked
        assert part.body == data[first:last + 1]
    beyond = get(Range="bytes=300000-")
    assert (beyond.status, beyond.headers["content-range"], beyond.code) == (416, "bytes */300000", "range_not_satisfiable")
    assert get(Range="bytes=7-3").status in (200, 416) and get(Range="pages=1").status == 200
    assert get(Range="bytes=1-2", **{"If-Range": whole.headers["etag"]}).status in (200, 206)
    assert get(Range="bytes=1-2", **{"If-Range": '"another"'}).status == 200


def test_a_form_is_a_way_to_write_a_file(server, sandbox):
    answer = httpx.post(f"{server.url}/v1/sandboxes/{sandbox}/file", params={"path": "/tmp/form.bin"}, files={"file": ("x", b"from a form\0")},
                        headers={"Authorization": f"Bearer {server.key}"})
    assert answer.status_code == 204, answer.text
    assert server.call("GET", f"/v1/sandboxes/{sandbox}/file", query={"path": "/tmp/form.bin"}).body == b"from a form\0"


def test_signed_urls_work_without_a_key_for_what_they_were_made_for_alone(server, box):
    box.files.write("/tmp/signed.txt", "signed content")
    box.files.write("/tmp/other.txt", "other content")
    get = box.files.download_url("/tmp/signed.txt")
    put = box.files.upload_url("/tmp/signed-in.txt", user="user")
    assert httpx.get(get).text == "signed content"
    assert httpx.put(put.url, content=iter([b"piece ", b"by piece"])).status_code == 204
    info = box.files.info("/tmp/signed-in.txt")
    assert (info.size, info.owner) == (14, "user") and put.token and put.token in put.url
    assert httpx.post(put.url, files={"file": ("n", b"as a form")}).status_code == 204
    assert box.files.read("/tmp/signed-in.txt") == "as a form"
    # Another verb, another path, another sandbox, another time: no.
    other = server.create(timeout_ms=600_000)
    for method, url in (("PUT", get), ("DELETE", get), ("GET", put.url), ("GET", get.replace("signed.txt", "other.txt")), ("GET", get.replace(box.id, other)),
                        ("GET", get + "x"), ("GET", get.split("?")[0] + "?path=/tmp/signed.txt")):
        answer = httpx.request(method, url, content=b"x" if method == "PUT" else None)
        assert answer.status_code in (401, 405), (method, url, answer.status_code, answer.text)
    server.destroy(other)
    made = server.call("POST", f"/v1/sandboxes/{box.id}/files/download-url", {"path": "/tmp/signed.txt", "expires_in_secs": 3}).json["url"]
    assert httpx.get(made).status_code == 200
    expired = until("it is too old", lambda: (answer := httpx.get(made)).status_code != 200 and answer, 30, 0.2)
    assert expired.status_code == 401 and expired.json()["code"] == "edge_token_expired"
    for seconds in (0, 86_401):
        answer = server.call("POST", f"/v1/sandboxes/{box.id}/files/download-url", {"path": "/tmp/signed.txt", "expires_in_secs": seconds})
        assert answer.status == 400 and "expires_in_secs" in answer.json["error"]


# ---- watching ------------------------------------------------------------------------------


class Seen:
    def __init__(self):
        self.events, self.exits = [], []

    def has(self, kind, name):
        return until(f"{kind} of {name} is seen in {[(e.type, e.name) for e in self.events]}",
                     lambda: any((e.type, e.name) == (kind, name) for e in self.events), 30)


def test_changes_of_a_directory_are_seen(box):
    box.files.make_dir("/workspace/watched/sub")
    seen = Seen()
    with box.files.watch_dir("/workspace/watched", seen.events.append, on_exit=seen.exits.append):
        box.files.write("/workspace/watched/new.txt", "1")
        seen.has("create", "new.txt")
        seen.has("write", "new.txt")
        count = len(seen.events)
        box.files.write("/workspace/watched/new.txt", "22")
        until("the second write is seen", lambda: any((e.type, e.name) == ("write", "new.txt") for e in seen.events[count:]), 30)
        box.files.set_permissions("/workspace/watched/new.txt", "0600")
        seen.has("chmod", "new.txt")
        box.files.rename("/workspace/watched/new.txt", "/workspace/watched/moved.txt")
        seen.has("rename", "new.txt")
        seen.has("rename", "moved.txt")
        box.commands.run("echo shell > /workspace/watched/by-shell; rm /workspace/watched/moved.txt", shell=True)
        seen.has("create", "by-shell")
        seen.has("remove", "moved.txt")
        box.files.write("/workspace/watched/sub/deep.txt", "1")
        box.files.write("/workspace/watched/last.txt", "1")
        seen.has("create", "last.txt")
        assert all(e.path == f"/workspace/watched/{e.name}" for e in seen.events)
        assert not [e for e in seen.events if "/" in e.name or ".nullspace" in e.name], seen.events
    until("the end is told", lambda: seen.exits, 10)
    assert seen.exits == [None]


def test_a_whole_tree_is_watched_with_what_appears_in_it(box):
    box.files.make_dir("/workspace/treewatch/a/b")
    seen = Seen()
    with box.files.watch_dir("/workspace/treewatch", seen.events.append, recursive=True):
        box.files.write("/workspace/treewatch/a/b/inner.txt", "1")
        seen.has("create", "a/b/inner.txt")
        box.commands.run("mkdir -p /workspace/treewatch/x/y/z; echo 1 > /workspace/treewatch/x/y/z/late.txt", shell=True)
        seen.has("create", "x/y/z/late.txt")
        box.files.rename("/workspace/treewatch/x", "/workspace/treewatch/w")
        box.files.write("/workspace/treewatch/w/y/after.txt", "1")
        seen.has("create", "w/y/after.txt")
        box.files.remove("/workspace/treewatch/a")
        seen.has("remove", "a/b/inner.txt")


def test_a_watch_ends_by_its_time_and_without_an_error(box):
    box.files.make_dir("/workspace/timed")
    seen, begin = Seen(), time.monotonic()
    box.files.watch_dir("/workspace/timed", seen.events.append, timeout=1.5, on_exit=seen.exits.append)
    until("it has ended", lambda: seen.exits, 20)
    assert seen.exits == [None] and time.monotonic() - begin >= 1.5


def test_what_cannot_be_watched_is_said_so(box):
    for path in ("/no/such/directory", "/workspace/.nullspace", "nul\0"):
        with pytest.raises(SandboxError) as refused:
            box.files.watch_dir(path, lambda event: None)
        assert refused.value.code == "watch_error" and str(refused.value)


# ---- resumable uploads ---------------------------------------------------------------------


class Interrupted(Exception):
    pass


def test_a_large_upload_that_was_interrupted_is_resumed(box, tmp_path):
    source, size = tmp_path / "large.bin", 100_000_000
    block = os.urandom(1_000_000)
    with open(source, "wb") as f:
        for n in range(size // len(block)):
            f.write(n.to_bytes(8, "big") + block[8:])
    known = []

    def stop_half_way(progress):
        known.append(progress.upload_id)
        if progress.bytes_completed and progress.bytes_completed >= size // 2:
            raise Interrupted

    with pytest.raises(BaseException):
        box.files.upload_file(source, "/workspace/up/large.bin", resumable=True, checksum="sha256", max_concurrency=4, progress=stop_half_way)
    upload = [u for u in known if u][-1]
    assert upload.startswith("up_") and not box.files.exists("/workspace/up/large.bin")
    assert box.files.list("/workspace/up") == [] if box.files.exists("/workspace/up") else True
    result = box.files.resume_upload(upload, source)
    assert (result.resumed, result.target_path, result.bytes_uploaded) == (True, "/workspace/up/large.bin", size)
    assert inside(box, "sha256sum /workspace/up/large.bin").split()[0] == hashlib.sha256(source.read_bytes()).hexdigest()
    again = box.files.resume_upload(upload, source)  # it is complete: nothing is sent
    assert again.target_path == result.target_path
    box.files.remove("/workspace/up")


def test_small_and_streamed_sources_go_the_short_way(box, tmp_path):
    (tmp_path / "small.txt").write_text("small")
    assert box.files.upload_file(tmp_path / "small.txt", "/tmp/small.txt", user="user").transport.value == "direct"
    assert box.files.info("/tmp/small.txt").owner == "user"
    forced = box.files.upload_file(io.BytesIO(b""), "/tmp/empty", resumable=True, spool_to_disk=True)
    assert forced.bytes_uploaded == 0 and box.files.info("/tmp/empty").size == 0


@pytest.fixture
def project(tmp_path):
    root = tmp_path / "project"
    (root / "src/deep").mkdir(parents=True)
    (root / "src/main.py").write_text("print('hi')\n")
    (root / "src/deep/data.bin").write_bytes(os.urandom(200_000))
    (root / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (root / "run.sh").chmod(0o755)
    (root / "link").symlink_to("src/main.py")
    (root / "empty").mkdir()
    return root


def test_a_directory_is_uploaded_with_modes_and_links(box, project):
    result = box.files.upload_dir(project, "/workspace/project", user="user")
    assert result.file_count in (3, 4) and result.transport.value == "resumable"
    assert inside(box, "/workspace/project/run.sh; cat /workspace/project/link; readlink /workspace/project/link; stat -c '%U %a' /workspace/project/run.sh; ls -d /workspace/project/empty"
                  ).splitlines() == ["ran", "print('hi')", "src/main.py", "user 755", "/workspace/project/empty"]
    # Merging keeps what is there, replacing does not, and whoever wants neither is refused.
    box.files.write("/workspace/project/own.txt", "mine")
    box.files.upload_dir(project, "/workspace/project")
    assert box.files.read("/workspace/project/own.txt") == "mine"
    with pytest.raises(FileUploadError) as refused:
        box.files.upload_dir(project, "/workspace/project", conflict="error")
    assert refused.value.code == "file_upload_error" and type(refused.value).__name__ == "UploadConflictError"
    box.files.upload_dir(project, "/workspace/project", conflict="replace")
    assert not box.files.exists("/workspace/project/own.txt") and box.files.exists("/workspace/project/src/deep/data.bin")


def upload(server, sandbox, data: bytes, *, key=None, part=None, **fields):
    """An upload over plain HTTP, to its completion; the last answer."""
    body = {"kind": "file", "source_kind": "restartable_file", "target_path": "/tmp/raw", "content_length": len(data), "conflict": "merge",
            "archive_format": None, "checksum_algorithm": "sha256", "whole_checksum_sha256": None, "metadata": {}} | fields
    made = server.call("POST", f"/v1/sandboxes/{sandbox}/uploads", body, headers={"Idempotency-Key": key} if key else None)
    if made.status not in (200, 201):
        return made
    session = made.json["session"]
    base = f"/v1/sandboxes/{sandbox}/uploads/{session['upload_id']}"
    for n in range(session["part_count"]):
        piece = data[n * session["part_size"]:(n + 1) * session["part_size"]]
        answer = server.call("PUT", f"{base}/parts/{n}", piece, headers={"x-nullspace-part-sha256": hashlib.sha256(piece).hexdigest()})
        if answer.status != 200:
            return answer
    return server.call("POST", f"{base}/complete", {"whole_checksum_sha256": hashlib.sha256(data).hexdigest()})


def reason(answer):
    assert answer.code == "file_upload_error" and answer.json["error_detail"]["message"], answer
    return answer.json["error_detail"]["reason"]


def test_parts_come_in_any_order_repeated_and_at_once(server, sandbox):
    data = os.urandom(20 << 20)
    body = {"kind": "file", "source_kind": "restartable_file", "target_path": "/tmp/parts", "content_length": len(data), "conflict": "merge",
            "archive_format": None, "checksum_algorithm": "sha256", "whole_checksum_sha256": None, "metadata": {}}
    made = server.call("POST", f"/v1/sandboxes/{sandbox}/uploads", body, headers={"Idempotency-Key": "parts-1"})
    session = made.json["session"]
    assert server.call("POST", f"/v1/sandboxes/{sandbox}/uploads", body, headers={"Idempotency-Key": "parts-1"}).json["session"]["upload_id"] == session["upload_id"]
    assert server.call("POST", f"/v1/sandboxes/{sandbox}/uploads", body | {"content_length": 1}, headers={"Idempotency-Key": "parts-1"}).code == "conflict"
    base, size, count = f"/v1/sandboxes/{sandbox}/uploads/{session['upload_id']}", session["part_size"], session["part_count"]
    assert (session["status"], session["next_part"], session["accepted_bytes"], count) == ("created", 0, 0, -(-len(data) // size))

    def put(n, piece=None, checksum=None):
        piece = data[n * size:(n + 1) * size] if piece is None else piece
        http = server.http()
        try:
            return http("PUT", f"{base}/parts/{n}", piece, headers={"x-nullspace-part-sha256": checksum or hashlib.sha256(piece).hexdigest()})
        finally:
            http.close()

    assert put(count - 1).json["next_part"] == 0
    assert reason(put(0, checksum="0" * 64)) == "invalid_part_checksum"
    assert reason(put(0, b"short")) == "part_size_mismatch"
    assert reason(put(count, b"x")) == "part_out_of_range"
    assert server.call("PUT", f"{base}/parts/0", b"x").code == "invalid_request"
    assert reason(server.call("POST", f"{base}/complete", {})) == "missing_parts"
    assert server.call("GET", base).json["accepted_bytes"] == len(data) - (count - 1) * size
    threads = [threading.Thread(target=put, args=(n,)) for n in range(count) for _ in range(2)]
    [t.start() for t in threads], [t.join() for t in threads]
    now = server.call("GET", base).json
    assert (now["status"], now["next_part"], now["accepted_bytes"]) == ("staged", None, len(data))
    assert server.exec(sandbox, "ls -A /tmp")["stdout"].find("parts") == -1
    done = server.call("POST", f"{base}/complete", None)
    assert (done.status, done.json["published_bytes"], done.json["published_file_count"], done.json["session"]["status"]) == (200, len(data), 1, "completed")
    assert server.call("POST", f"{base}/complete", {}).json == done.json
    assert server.out(sandbox, "sha256sum /tmp/parts").split()[0] == hashlib.sha256(data).hexdigest()
    assert reason(put(0)) == "upload_already_completed"
    assert reason(server.call("DELETE", base)) == "upload_already_completed"


def test_an_upload_that_was_given_up_or_is_wrong_leaves_nothing(server, sandbox):
    free = "df --output=avail / | tail -1"
    before = int(server.out(sandbox, free))
    assert reason(upload(server, sandbox, b"x" * 100, whole_checksum_sha256="0" * 64)) == "whole_checksum_mismatch"
    body = {"kind": "file", "source_kind": "restartable_file", "target_path": "/var/tmp/given-up", "content_length": 200 << 20}
    made = server.call("POST", f"/v1/sandboxes/{sandbox}/uploads", body)
    assert made.status in (200, 201), made
    assert before - int(server.out(sandbox, free)) > 150 << 10, "space is kept free for it"
    base = f"/v1/sandboxes/{sandbox}/uploads/{made.json['session']['upload_id']}"
    assert server.call("DELETE", base).status == 204
    assert server.call("GET", base).json["status"] == "aborted"
    assert reason(server.call("POST", f"{base}/complete", {})) == "upload_aborted"
    until("its space is free again", lambda: before - int(server.out(sandbox, free)) < 10 << 10, 30)
    assert server.out(sandbox, "ls -A /var/tmp | grep -c given || true") == "0"
    assert reason(server.call("POST", f"/v1/sandboxes/{sandbox}/uploads", body | {"content_length": 100 << 30})) in ("insufficient_staging_space", "size_limit_exceeded")
    for wrong in ({"content_length": -1}, {"content_length": "x"}, {"kind": "folder"}, {"target_path": "/workspace/.nullspace/x"}, {"target_path": ""},
                  {"whole_checksum_sha256": "zz"}, {"kind": "directory_tar", "archive_format": None}, {"conflict": "maybe"}):
        answer = server.call("POST", f"/v1/sandboxes/{sandbox}/uploads", body | wrong)
        assert answer.status == 400 and answer.code == "invalid_request", (wrong, answer)
    missing = server.call("GET", f"/v1/sandboxes/{sandbox}/uploads/up_{'0' * 32}")
    assert (missing.status, missing.code) == (404, "upload_not_found")


def test_an_upload_onto_something_else_is_a_conflict(server, sandbox):
    server.out(sandbox, "rm -rf /tmp/raw; mkdir -p /tmp/raw/full; touch /tmp/raw/full/x")
    assert reason(upload(server, sandbox, b"data")) == "target_conflict"
    server.out(sandbox, "rm -rf /tmp/raw; echo old > /tmp/raw")
    assert reason(upload(server, sandbox, b"data", conflict="error")) == "target_conflict"
    assert server.out(sandbox, "cat /tmp/raw") == "old"
    assert upload(server, sandbox, b"data").status == 200
    assert server.out(sandbox, "cat /tmp/raw") == "data"


def entry(name, kind=tarfile.REGTYPE, content=b"x", **more):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content) if kind == tarfile.REGTYPE else 0
    for field, value in more.items():
        setattr(info, field, value)
    return info, content


HOSTILE = {
    "absolute": (entry("/etc/hacked"), "directory_extract_invalid_path"),
    "parent": (entry("../../etc/hacked"), "directory_extract_invalid_path"),
    "hidden parent": (entry("a/../../hacked"), "directory_extract_invalid_path"),
    "link out": (entry("link", tarfile.SYMTYPE, linkname="../../../etc/passwd"), "directory_extract_invalid_symlink"),
    "absolute link": (entry("link", tarfile.SYMTYPE, linkname="/etc/passwd"), "directory_extract_invalid_symlink"),
    "hard link": (entry("hard", tarfile.LNKTYPE, linkname="ok"), "directory_extract_unsupported_entry"),
    "device": (entry("null", tarfile.CHRTYPE, devmajor=1, devminor=3), "directory_extract_unsupported_entry"),
    "pipe": (entry("pipe", tarfile.FIFOTYPE), "directory_extract_unsupported_entry"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_archive_is_refused_whole(server, sandbox, what):
    (info, content), wanted = HOSTILE[what]
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(*[(i, io.BytesIO(c)) for i, c in [entry("ok")]][0])
        tar.addfile(info, io.BytesIO(content))
    answer = upload(server, sandbox, archive.getvalue(), kind="directory_tar", source_kind="directory_archive", archive_format="tar", target_path="/tmp/hostile")
    assert reason(answer) == wanted
    assert server.out(sandbox, "ls -A /tmp/hostile 2>/dev/null | wc -l; ls /etc/hacked /hacked /tmp/hacked 2>/dev/null | wc -l") == "0\n0"


def test_a_file_that_is_no_archive_is_refused(server, sandbox):
    answer = upload(server, sandbox, os.urandom(5000), kind="directory_tar", source_kind="directory_archive", archive_format="tar", target_path="/tmp/noise")
    assert reason(answer).startswith("directory_extract_") and server.exec(sandbox, "ls /tmp/noise")["exit_code"] != 0


def test_a_disk_that_fills_during_an_upload_leaves_nothing_half_published(server, temporary):
    one = temporary(timeout_ms=600_000)
    body = {"kind": "file", "source_kind": "restartable_file", "target_path": "/workspace/big", "content_length": 64 << 20}
    made = server.call("POST", f"/v1/sandboxes/{one}/uploads", body).json["session"]
    # The raw way has no reservation: it runs into the end of the disk.
    server.exec(one, "fallocate -l $(($(df --output=avail -B1 / | tail -1) - 20000000)) /var/tmp/fill")
    raw = server.call("PUT", f"/v1/sandboxes/{one}/file", b"x" * (40 << 20), query={"path": "/workspace/raw"})
    assert raw.code == "file_error" and "space" in raw.json["error"], raw
    assert server.out(one, "ls -A /workspace | wc -l") == "0"
    # The other one has its room.
    size, base = made["part_size"], f"/v1/sandboxes/{one}/uploads/{made['upload_id']}"
    for n in range(made["part_count"]):
        piece = bytes([n]) * min(size, (64 << 20) - n * size)
        assert server.call("PUT", f"{base}/parts/{n}", piece, headers={"x-nullspace-part-sha256": hashlib.sha256(piece).hexdigest()}).status == 200
    assert server.call("POST", f"{base}/complete", {}).status == 200
    refused = server.call("POST", f"/v1/sandboxes/{one}/uploads", body | {"target_path": "/workspace/second"})
    assert reason(refused) == "insufficient_staging_space"
    assert server.out(one, "stat -c %s /workspace/big; ls -A /workspace") == f"{64 << 20}\nbig"


def test_paths_at_their_limits_are_answered_clearly(server, sandbox):
    server.out(sandbox, "ln -sfn /tmp/loop-b /tmp/loop-a; ln -sfn /tmp/loop-a /tmp/loop-b; mkdir -p /mnt/ro && mount -t tmpfs -o ro ro /mnt/ro")
    for path, codes in (("/tmp/" + "x" * 300, ("invalid_request",)), ("/" + "x/" * 2500, ("invalid_request",)), ("/tmp/loop-a", ("invalid_request", "file_error")),
                        ("/tmp/loop-a/below", ("invalid_request", "file_error")), ("/mnt/ro/file", ("file_error", "permission_denied")), ("/proc/1/mem", ("file_error", "permission_denied", "invalid_request")),
                        ("/tmp/a\0b", ("invalid_request",)), ("/workspace/../workspace/.nullspace/x", ("invalid_request",))):
        answer = server.call("POST", f"/v1/sandboxes/{sandbox}/files/write", {"path": path, "content": "x"})
        assert 400 <= answer.status < 500 and answer.code in codes, (path[:40], answer)
    server.out(sandbox, "umount /mnt/ro")
