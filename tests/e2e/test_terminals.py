"""Terminal sessions as a user of the public client has them."""

import re
import threading
import time

import pytest
from nullspace import NotFoundError, Sandbox, SandboxError

from appliance import until

ESCAPES = re.compile(rb"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[()][0-9A-B]|[=>78cMDE])")


class Screen:
    """A viewer that keeps what it saw."""

    def __init__(self, session):
        self.session, self.seen, self.result = session, b"", None
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        try:
            self.result = self.session.wait(on_data=self._take)
        except SandboxError as error:  # the viewer left
            self.result = error

    def _take(self, data):
        self.seen += data

    @property
    def text(self):
        return ESCAPES.sub(b"", self.seen).decode(errors="replace").replace("\r", "")

    def shows(self, what, count=1):
        return until(f"the screen shows {what!r}", lambda: self.text.count(what) >= count, 60)

    def type(self, text):
        self.session.send_input(text)

    def ends(self):
        self.thread.join(60)
        assert not self.thread.is_alive(), "the session did not end"
        return self.result


def test_a_shell_is_typed_into_and_says_how_it_ended(box):
    screen = Screen(box.pty.create_session(cwd="/tmp", envs={"GREETING": "hello there"}))
    assert screen.session.session_id.startswith("ses_") and screen.session.pid > 1
    screen.type("echo $GREETING-$PWD-$((6*7))\n")
    screen.shows("hello there-/tmp-42")
    screen.type(b"stty size; test -t 0 && echo is-a-\xc3\xbc-tty\n")
    screen.shows("30 120")
    screen.shows("is-a-ü-tty", 2)
    screen.type("exit 7\n")
    assert screen.ends().exit_code == 7
    assert screen.session.session_id not in {s.session_id for s in box.pty.list_sessions()}


def test_a_resize_reaches_the_program(box):
    screen = Screen(box.pty.create_session(cols=80, rows=24))
    screen.type("trap 'echo now-$(stty size)' WINCH; echo ready-$((1+1))\n")
    screen.shows("ready-2")
    screen.session.resize(100, 40)
    screen.type("\n")
    screen.shows("now-40 100")
    box.pty.resize_session(screen.session.session_id, 90, 33)
    screen.type("\n")
    screen.shows("now-33 90")
    info = box.pty.get_session_info(screen.session.session_id)
    assert (info.cols, info.rows, info.pid) == (90, 33, screen.session.pid)
    for cols, rows in ((0, 10), (10, 0), (100_000, 10)):
        answer = box._client.request  # the client itself refuses zero: ask past it
        with pytest.raises(SandboxError) as refused:
            answer("POST", f"/v1/sandboxes/{box.id}/pty/{screen.session.session_id}/resize", json={"cols": cols, "rows": rows})
        assert refused.value.code == "invalid_request" and ("cols" if not 1 <= cols <= 1000 else "rows") in str(refused.value)
    screen.session.kill()
    assert screen.ends().exit_code == 137


def test_a_session_outlives_its_viewer_and_is_drawn_again(box):
    first = Screen(box.pty.create_session(cols=80, rows=24))
    first.type("echo left-$((40+2)); X=kept\n")
    first.shows("left-42")
    first.session.disconnect()
    session = first.session.session_id
    assert session in {s.session_id for s in box.pty.list_sessions()}
    elsewhere = Sandbox.connect(box.id)  # not a context: leaving one destroys the sandbox
    again = Screen(elsewhere.pty.connect(session_id=session))
    again.shows("left-42")  # what was on the screen
    again.type("echo still-$X\n")
    again.shows("still-kept")
    by_pid = Screen(elsewhere.pty.connect(pid=first.session.pid))
    by_pid.shows("still-kept")
    # Both see what either types.
    by_pid.type("echo both-$((2+3))\n")
    again.shows("both-5")
    by_pid.shows("both-5")
    elsewhere.pty.kill_session(session)
    assert again.ends().exit_code == by_pid.ends().exit_code == 137


def test_a_full_screen_program_comes_back_as_it_was(box):
    box.files.write("/tmp/long.txt", "".join(f"this is line {n}\n" for n in range(1, 501)))
    program = (
        "import curses\n"
        "def main(screen):\n"
        "    screen.addstr(2, 4, 'FULL SCREEN'); screen.addstr(10, 20, 'in the middle'); screen.refresh()\n"
        "    while (key := screen.getkey()) != 'q':\n"
        "        screen.addstr(12, 0, f'pressed {key}'); screen.refresh()\n"
        "curses.wrapper(main)\n")
    box.files.write("/tmp/full.py", program)
    screen = Screen(box.pty.create_session(cols=80, rows=24))
    screen.type("python3 /tmp/full.py; echo back-$((1+1))\n")
    screen.shows("in the middle")
    screen.type("x")
    screen.shows("pressed x")
    screen.session.disconnect()
    again = Screen(box.pty.connect(session_id=screen.session.session_id))
    for what in ("FULL SCREEN", "in the middle", "pressed x"):
        again.shows(what)
    assert b"\x1b[?1049h" in again.seen or b"\x1b[?47h" in again.seen  # on the other screen, as the program is
    again.type("q")
    again.shows("back-2")
    again.session.kill()
    again.ends()


def test_much_output_comes_whole_to_a_viewer(box):
    screen = Screen(box.pty.create_session(cols=80, rows=24))
    screen.type("stty -echo; for n in $(seq 1 20000); do echo line-$n; done; echo end-$((1+1))\n")
    until("the end has come", lambda: "end-2" in screen.text[-200:], 120, 0.2)
    lines = [line for line in screen.text.splitlines() if line.startswith("line-")]
    assert lines == [f"line-{n}" for n in range(1, 20001)]
    screen.type("exit\n")
    assert screen.ends().exit_code == 0


def test_a_session_that_is_not_there_is_said_so(box):
    missing = "ses_" + "0" * 32
    for ask in (lambda: box.pty.get_session_info(missing), lambda: box.pty.kill_session(missing), lambda: box.pty.resize_session(missing, 80, 24)):
        with pytest.raises(NotFoundError) as refused:
            ask()
        assert refused.value.code == "pty_not_found" and missing in str(refused.value)
    for ask in ({"session_id": missing}, {"session_id": "nonsense"}, {"pid": 4_000_000}):
        begin = time.monotonic()
        with pytest.raises(SandboxError) as refused:
            box.pty.connect(**ask)
        assert refused.value.code == "pty_not_found", refused.value
        assert time.monotonic() - begin < 15


def test_a_wait_that_runs_out_leaves_the_session(box):
    session = box.pty.create_session()
    result = session.wait(timeout=1)
    assert (result.exit_code, result.timed_out) == (124, True)
    assert session.session_id in {s.session_id for s in box.pty.list_sessions()}
    box.pty.kill_session(session.session_id)
    until("it is gone", lambda: session.session_id not in {s.session_id for s in box.pty.list_sessions()}, 60)
