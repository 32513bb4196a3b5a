"""Files as a user of the public client handles them."""

import io
import os

import pytest
from nullspace import NotFoundError, SandboxError


def test_text_and_bytes_come_back_as_they_were_written(box):
    text, data = "grüße\n\n\u2028 end", bytes(range(256)) * 400
    info = box.files.write("/workspace/new/deep/text.txt", text)  # the directories come with it
    assert (info.path, info.name, info.is_dir, info.size) == ("/workspace/new/deep/text.txt", "text.txt", False, len(text.encode()))
    assert box.files.read("/workspace/new/deep/text.txt") == text
    box.files.write("/tmp/data.bin", data)
    assert box.files.read("/tmp/data.bin", format="bytes") == data
    assert b"".join(box.files.read("/tmp/data.bin", format="stream")) == data
    box.files.write("/tmp/data.bin", "")
    assert box.files.read("/tmp/data.bin") == ""


def test_a_stream_of_megabytes_goes_in_and_out(box):
    data = os.urandom(5 << 20)
    assert box.files.write("/var/tmp/big.bin", io.BytesIO(data)).size == len(data)
    assert b"".join(box.files.read("/var/tmp/big.bin", format="stream")) == data
    assert box.files.read("/var/tmp/big.bin", format="bytes") == data
    box.files.remove("/var/tmp/big.bin")


def test_content_that_is_no_text_is_read_with_replacements(box):
    box.files.write("/tmp/latin.txt", b"caf\xe9")
    assert box.files.read("/tmp/latin.txt") == "caf\ufffd"


def test_a_directory_is_listed_to_the_asked_depth(box):
    box.files.write("/workspace/tree/top.txt", "1")
    box.files.write("/workspace/tree/a/inner.txt", "22")
    box.files.write("/workspace/tree/a/b/deepest.txt", "333")
    top = {f.name: f for f in box.files.list("/workspace/tree")}
    assert set(top) == {"top.txt", "a"}
    assert top["a"].is_dir and top["a"].type == "dir" and not top["top.txt"].is_dir and top["top.txt"].size == 1
    assert {f.path for f in box.files.list("/workspace/tree", depth=2)} == {
        "/workspace/tree/top.txt", "/workspace/tree/a", "/workspace/tree/a/inner.txt", "/workspace/tree/a/b"}
    assert "/workspace/tree/a/b/deepest.txt" in {f.path for f in box.files.list("/workspace/tree", depth=3)}
    assert {"etc", "home", "usr"} <= {f.name for f in box.files.list()}


def test_info_says_what_a_path_is(box):
    box.files.write("/workspace/about.txt", "12345")
    box.commands.run("ln -sf about.txt /workspace/link; chmod 640 /workspace/about.txt", shell=True)
    info = box.files.info("/workspace/about.txt")
    assert (info.type, info.size, info.mode, info.permissions, info.owner, info.group) == ("file", 5, "0640", "0640", "root", "root")
    assert info.modified_time is not None
    link = box.files.info("/workspace/link")
    assert (link.type, link.symlink_target) == ("symlink", "about.txt")
    assert box.files.info("/workspace").is_dir


def test_paths_come_into_being_move_and_go(box):
    assert not box.files.exists("/workspace/x/y")
    assert box.files.make_dir("/workspace/x/y")
    assert box.files.make_dir("/workspace/x/y")  # again is no error
    box.files.write("/workspace/x/y/file", "content")
    assert box.files.exists("/workspace/x/y/file")
    moved = box.files.rename("/workspace/x/y/file", "/workspace/x/moved")
    assert moved.path == "/workspace/x/moved" and box.files.read("/workspace/x/moved") == "content"
    assert not box.files.exists("/workspace/x/y/file")
    box.files.set_permissions("/workspace/x/moved", "0600")
    assert box.files.info("/workspace/x/moved").mode == "0600"
    box.files.remove("/workspace/x")  # a whole directory
    assert not box.files.exists("/workspace/x")


def test_relative_paths_start_at_the_working_directory_or_the_users_home(box):
    box.files.write("here.txt", "1")
    assert box.files.read("/workspace/here.txt") == "1"
    info = box.files.write("mine.txt", "2", user="user")
    assert (info.path, info.owner) == ("/home/user/mine.txt", "user")
    assert box.commands.run("stat -c %U:%G /home/user/mine.txt", shell=True).stdout == "user:user\n"


def test_overwriting_keeps_the_owner_and_naming_a_user_changes_it(box):
    box.files.write("/tmp/owned.txt", "1", user="user")
    assert box.files.write("/tmp/owned.txt", "2").owner == "user"
    box.files.write("/tmp/roots.txt", "1")
    assert box.files.write("/tmp/roots.txt", "2", user="user").owner == "user"


def test_what_is_not_there_is_not_found(box):
    for ask in (box.files.read, box.files.info, box.files.list, lambda p: box.files.read(p, format="bytes")):
        with pytest.raises(NotFoundError) as refused:
            ask("/workspace/nothing/here")
        assert refused.value.code == "file_not_found"


@pytest.mark.parametrize("path", ["/workspace/.nullspace/secret", "/workspace/a/../.nullspace/secret", "/workspace/nul\0byte", ""])
def test_a_path_outside_the_rules_is_refused(box, path):
    with pytest.raises(SandboxError) as refused:
        box.files.write(path, "x")
    assert refused.value.code == "invalid_request" and "path" in str(refused.value)


def test_a_place_that_takes_no_files_is_said_so(box):
    with pytest.raises(SandboxError) as refused:
        box.files.write("/proc/version", "x")
    assert refused.value.code in ("file_error", "permission_denied")
    with pytest.raises(SandboxError) as refused:
        box.files.write("/etc/hostname/below-a-file", "x")
    assert refused.value.code in ("file_error", "invalid_request") and "/etc/hostname/below-a-file" in str(refused.value)
