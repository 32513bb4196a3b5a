//! Terminal sessions.

use std::collections::HashMap;

use nullspace_guest_proto as pb;
use pb::terminal_event::Event;
use tonic::{Code, Status};

use crate::agent::Agent;

const COLS: u16 = 80;
const ROWS: u16 = 24;

fn session(id: &str, command: &str) -> pb::StartTerminalRequest {
    pb::StartTerminalRequest {
        session_id: id.into(),
        cols: COLS.into(),
        rows: ROWS.into(),
        command: command.into(),
        ..Default::default()
    }
}

impl Agent {
    async fn terminal(&mut self, request: pb::StartTerminalRequest) -> Result<pb::Terminal, Status> {
        self.client.start_terminal(request).await.map(|reply| reply.into_inner())
    }

    async fn view(&mut self, id: &str) -> View {
        let request = pb::TerminalRequest { session_id: id.into() };
        let mut events = self.client.attach_terminal(request).await.unwrap().into_inner();
        let Some(Event::Terminal(terminal)) = events.message().await.unwrap().unwrap().event else {
            panic!("the session comes first");
        };
        View { events, terminal, seen: Vec::new(), exited: None }
    }

    async fn write_terminal(&mut self, id: &str, data: impl Into<bytes::Bytes>) -> Result<(), Status> {
        let request = pb::WriteTerminalRequest { session_id: id.into(), data: data.into() };
        self.client.write_terminal(request).await.map(drop)
    }

    async fn enter(&mut self, id: &str, line: &str) {
        self.write_terminal(id, format!("{line}\r")).await.unwrap();
    }

    async fn resize(&mut self, id: &str, cols: u32, rows: u32) -> Result<(), Status> {
        let request = pb::ResizeTerminalRequest { session_id: id.into(), cols, rows };
        self.client.resize_terminal(request).await.map(drop)
    }

    async fn kill_terminal(&mut self, id: &str) -> Result<(), Status> {
        self.client.kill_terminal(pb::TerminalRequest { session_id: id.into() }).await.map(drop)
    }

    async fn running(&mut self) -> Vec<String> {
        let list = self.client.list_terminals(pb::ListTerminalsRequest {}).await.unwrap().into_inner();
        list.terminals.into_iter().map(|terminal| terminal.session_id).collect()
    }
}

/// A viewer, and what it has seen.
struct View {
    events: tonic::Streaming<pb::TerminalEvent>,
    terminal: pb::Terminal,
    seen: Vec<u8>,
    exited: Option<pb::Exited>,
}

impl View {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// What a terminal shows that was sent this.
    fn screen(&self) -> String {
        let mut terminal = avt::Terminal::new(COLS.into(), ROWS.into()).unwrap();
        terminal.feed(self.text());
        terminal.screen().text().join("\n").trim_end().into()
    }

    async fn next(&mut self) -> bool {
        assert!(self.exited.is_none(), "nothing follows the end");
        match self.events.message().await.unwrap().map(|message| message.event.unwrap()) {
            Some(Event::Output(data)) => {
                assert!(!data.is_empty() && data.len() <= pb::CHUNK_BYTES);
                self.seen.extend_from_slice(&data);
            }
            Some(Event::Exited(exited)) => self.exited = Some(exited),
            Some(Event::Terminal(_)) => panic!("the session comes once"),
            None => panic!("the stream ends with the session: {}", self.text()),
        }
        self.exited.is_none()
    }

    async fn shows(&mut self, what: &str) {
        while !self.text().contains(what) {
            assert!(self.next().await, "{what:?} did not come: {}", self.text());
        }
    }

    async fn ends(&mut self) -> pb::Exited {
        while self.next().await {}
        assert!(self.events.message().await.unwrap().is_none());
        self.exited.unwrap()
    }
}

#[tokio::test]
async fn a_shell_is_typed_into_and_says_how_it_ended() {
    let mut agent = Agent::start().await;
    let mut request = session("ses_1", "");
    request.cwd = "/usr".into();
    request.envs = HashMap::from([("PS1".into(), "$ ".into()), ("CALL".into(), "of the call".into())]);
    let terminal = agent.terminal(request).await.unwrap();
    assert_eq!((terminal.session_id.as_str(), terminal.cols, terminal.rows), ("ses_1", 80, 24));
    let mut view = agent.view("ses_1").await;
    assert_eq!(view.terminal, terminal);
    agent.enter("ses_1", "echo $MACHINE, $CALL, $PWD, $TERM, $COLORTERM, $$, $((6*7)); tty; stty size").await;
    let pid = terminal.pid;
    view.shows(&format!(
        "of the machine, of the call, /usr, xterm-256color, truecolor, {pid}, 42\r\n/dev/pts/"
    ))
    .await;
    view.shows("\r\n24 80\r\n").await;
    agent
        .enter("ses_1", "shopt -q login_shell && echo log-$((1+1)); test -x $SHELL && echo shell-$((2+2))")
        .await;
    view.shows("shell-4").await;
    assert!(view.text().contains("log-2"), "{}", view.text());
    let list = agent.client.list_processes(pb::ListProcessesRequest {}).await.unwrap().into_inner();
    assert_eq!(list.processes.iter().filter(|process| process.pid == pid && process.running).count(), 1);
    assert_eq!(agent.running().await, ["ses_1"]);
    agent.enter("ses_1", "exit 7").await;
    let exited = view.ends().await;
    assert!(exited.exit_code == 7 && exited.duration_us > 0);

    assert!(agent.running().await.is_empty());
    let late = agent.write_terminal("ses_1", "x").await.unwrap_err();
    assert_eq!((late.code(), late.message()), (Code::FailedPrecondition, "terminal session ses_1 has ended"));
    assert_eq!(agent.resize("ses_1", 10, 10).await.unwrap_err().code(), Code::FailedPrecondition);
    agent.kill_terminal("ses_1").await.unwrap();
    let mut late = agent.view("ses_1").await;
    assert_eq!(late.ends().await.exit_code, 7);
    assert!(late.screen().contains("of the call"));
}

#[tokio::test]
async fn a_session_runs_as_the_user_it_is_to_run_as_and_its_terminal_is_theirs() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIP: needs root to become another user");
        return;
    }
    let mut agent = Agent::start().await;
    let command = "read x; id -un; stat -c '%U %A' $(tty); echo $HOME $USER; exit 3";
    agent
        .terminal(pb::StartTerminalRequest { user: "nobody".into(), ..session("ses_1", command) })
        .await
        .unwrap();
    let mut view = agent.view("ses_1").await;
    agent.enter("ses_1", "").await;
    assert_eq!(view.ends().await.exit_code, 3);
    assert!(view.screen().starts_with("\nnobody\nnobody crw"), "{}", view.screen());
}

#[tokio::test]
async fn the_same_start_again_answers_the_same_session() {
    let mut agent = Agent::start().await;
    let mut other = agent.client.clone();
    let (first, second) = tokio::join!(
        agent.client.start_terminal(session("ses_1", "cat")),
        other.start_terminal(session("ses_1", "cat"))
    );
    let first = first.unwrap().into_inner();
    assert_eq!(second.unwrap().into_inner(), first);
    agent.kill_terminal("ses_1").await.unwrap();
    assert_eq!(agent.view("ses_1").await.ends().await.exit_code, 137);
    assert_eq!(agent.terminal(session("ses_1", "cat")).await.unwrap(), first, "also after its end");
}

#[tokio::test]
async fn what_is_out_of_bounds_is_refused_and_starts_nothing() {
    let mut agent = Agent::start().await;
    let good = || session("ses_1", "cat");
    for (request, message) in [
        (pb::StartTerminalRequest { cols: 0, ..good() }, "cols is 0; it must be 1 to 1000"),
        (pb::StartTerminalRequest { rows: 1001, ..good() }, "rows is 1001; it must be 1 to 1000"),
        (session("", "cat"), "session_id has 0 bytes; it must have 1 to 64"),
        (session(&"x".repeat(65), "cat"), "session_id has 65 bytes; it must have 1 to 64"),
        (session("ses_1", "a\0b"), "the command contains a NUL byte"),
        (pb::StartTerminalRequest { user: "no-such-user".into(), ..good() }, "there is no user no-such-user"),
        (
            pb::StartTerminalRequest { cwd: "/no/such".into(), ..good() },
            "cwd /no/such: No such file or directory",
        ),
    ] {
        let refused = agent.terminal(request).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, message));
    }
    assert!(agent.running().await.is_empty());
    for missing in [
        agent.write_terminal("ses_0", "x").await,
        agent.resize("ses_0", 10, 10).await,
        agent.kill_terminal("ses_0").await,
        agent.client.attach_terminal(pb::TerminalRequest { session_id: "ses_0".into() }).await.map(drop),
    ] {
        let missing = missing.unwrap_err();
        assert_eq!(
            (missing.code(), missing.message()),
            (Code::NotFound, "there is no terminal session ses_0")
        );
    }
    agent.terminal(good()).await.unwrap();
    assert_eq!(agent.resize("ses_1", 10, 0).await.unwrap_err().message(), "rows is 0; it must be 1 to 1000");
    let much = agent.write_terminal("ses_1", vec![b'x'; (1 << 20) + 1]).await.unwrap_err();
    assert_eq!(
        (much.code(), much.message()),
        (Code::InvalidArgument, "data has 1048577 bytes; at most 1048576")
    );
}

#[tokio::test]
async fn sixty_four_sessions_run_and_no_more_and_their_screens_are_bounded() {
    let mut agent = Agent::start().await;
    for number in 0..64 {
        agent.terminal(session(&format!("ses_{number}"), "cat")).await.unwrap();
    }
    let more = agent.terminal(session("ses_64", "cat")).await.unwrap_err();
    assert_eq!(more.code(), Code::ResourceExhausted);
    assert!(more.message().contains("64 terminal sessions run already"), "{}", more.message());
    agent.resize("ses_0", 1000, 1000).await.unwrap();
    let large = agent.resize("ses_1", 1000, 1000).await.unwrap_err();
    assert_eq!(large.code(), Code::ResourceExhausted);
    agent.resize("ses_0", 80, 24).await.unwrap();
    agent.resize("ses_1", 1000, 1000).await.unwrap();
    agent.kill_terminal("ses_1").await.unwrap();
    agent.view("ses_1").await.ends().await;
    agent.terminal(session("ses_64", "cat")).await.unwrap();
    agent.resize("ses_64", 1000, 1000).await.unwrap();
}

#[tokio::test]
async fn a_resize_reaches_the_program_and_all_viewers_see_what_any_of_them_types() {
    let mut agent = Agent::start().await;
    let command = "trap 'stty size' WINCH; echo ready; while :; do read line && echo got $line; done";
    agent.terminal(session("ses_1", command)).await.unwrap();
    let (mut one, mut two) = (agent.view("ses_1").await, agent.view("ses_1").await);
    one.shows("ready").await;
    agent.resize("ses_1", 100, 40).await.unwrap();
    // A shell's trap waits for its `read` to end.
    agent.enter("ses_1", "this").await;
    for view in [&mut one, &mut two] {
        view.shows("40 100\r\n").await;
        view.shows("got this\r\n").await;
    }
    assert_eq!(agent.view("ses_1").await.terminal.cols, 100);
}

#[tokio::test]
async fn a_viewer_that_comes_later_is_shown_the_screen_and_what_has_scrolled_off() {
    let mut agent = Agent::start().await;
    let command =
        "for n in $(seq 1 60); do echo line-$n; done; printf '\\033[31mred\\033[m '; read x; echo after";
    agent.terminal(session("ses_1", command)).await.unwrap();
    let mut first = agent.view("ses_1").await;
    first.shows("red").await;
    let mut again = agent.view("ses_1").await;
    again.shows("red").await;
    assert!(again.text().contains("line-1\r\n"), "{}", again.text());
    assert!(
        again.screen().starts_with("line-38\n") && again.screen().ends_with("line-60\nred"),
        "{}",
        again.screen()
    );
    agent.enter("ses_1", "").await;
    first.ends().await;
    again.ends().await;
    assert_eq!(again.screen(), first.screen());
    assert!(first.screen().ends_with("after"), "{}", first.screen());
}

#[tokio::test]
async fn a_full_screen_program_comes_back_as_it_was() {
    let mut agent = Agent::start().await;
    let command = "echo before; printf '\\033[?1049h\\033[2J\\033[5;10Hfull screen\\033[?1h\\033[?2004h\\033[?1002h\\033[3;1H'; \
                   read x; printf 'typed %s' $x; read x; printf '\\033[?1049l'; echo over; read x";
    agent.terminal(session("ses_1", command)).await.unwrap();
    agent.view("ses_1").await.shows("\x1b[?1002h").await;
    let mut again = agent.view("ses_1").await;
    again.shows("full screen").await;
    for mode in ["\x1b[?1049h", "\x1b[?1h", "\x1b[?2004h", "\x1b[?1002h"] {
        assert!(again.text().contains(mode), "{mode:?}: {:?}", again.text());
    }
    agent.enter("ses_1", "q").await;
    again.shows("typed q").await;
    assert_eq!(again.screen(), "\n\nq\ntyped q\n         full screen");
    agent.enter("ses_1", "").await;
    again.shows("over").await;
    assert_eq!(again.screen(), "before\nover");
}

#[tokio::test]
async fn a_kill_ends_every_process_of_the_session_whatever_group_it_is_in() {
    let mut agent = Agent::start().await;
    agent.terminal(session("ses_1", "bash -i")).await.unwrap();
    let mut view = agent.view("ses_1").await;
    agent
        .enter("ses_1", "(trap '' HUP; while :; do sleep 1000; done) & echo job-$((1+1)): $!; sleep 1234")
        .await;
    view.shows("job-2: ").await;
    while !view.text().split("job-2: ").nth(1).unwrap().contains('\r') {
        view.next().await;
    }
    let job = view.text().split("job-2: ").nth(1).unwrap().split('\r').next().unwrap().to_string();
    agent.kill_terminal("ses_1").await.unwrap();
    assert_eq!(view.ends().await.exit_code, 137);
    let gone = agent.shell(&format!("while kill -0 {job} 2>/dev/null; do sleep 0.01; done")).await;
    assert_eq!(gone.code(), 0);
    agent.kill_terminal("ses_1").await.unwrap();
}

#[tokio::test]
async fn a_session_ends_with_its_program_though_others_keep_the_terminal_open() {
    let mut agent = Agent::start().await;
    let command = "(trap '' HUP; exec sleep 1000) & echo ready; read x; seq 1 2000; exit 5";
    agent.terminal(session("ses_1", command)).await.unwrap();
    let mut view = agent.view("ses_1").await;
    view.shows("ready").await;
    agent.enter("ses_1", "").await;
    assert_eq!(view.ends().await.exit_code, 5);
    assert!(view.text().ends_with("1999\r\n2000\r\n"), "what was written last is there");
}

#[tokio::test]
async fn much_that_is_typed_arrives_whole_and_in_order() {
    let mut agent = Agent::start().await;
    agent
        .terminal(session("ses_1", "stty raw -echo; echo ready; head -c 900000 | sha256sum; read x"))
        .await
        .unwrap();
    let mut view = agent.view("ses_1").await;
    view.shows("ready").await;
    let typed: Vec<u8> = (0..900_000_u32).map(|n| (n % 251) as u8).collect();
    agent.write_terminal("ses_1", typed[..300_000].to_vec()).await.unwrap();
    agent.write_terminal("ses_1", typed[300_000..].to_vec()).await.unwrap();
    use sha2::Digest;
    let sum: String = sha2::Sha256::digest(&typed).iter().map(|byte| format!("{byte:02x}")).collect();
    view.shows(&sum).await;
}

#[tokio::test]
async fn typing_to_a_program_that_does_not_read_ends_with_the_session() {
    let mut agent = Agent::start().await;
    agent.terminal(session("ses_1", "stty raw -echo; echo ready; sleep 1000")).await.unwrap();
    agent.view("ses_1").await.shows("ready").await;
    let mut writer = agent.client.clone();
    let request = pb::WriteTerminalRequest { session_id: "ses_1".into(), data: vec![b'x'; 1 << 20].into() };
    let write = tokio::spawn(async move { writer.write_terminal(request).await.map(drop) });
    agent.kill_terminal("ses_1").await.unwrap();
    assert_eq!(write.await.unwrap().unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn output_waits_for_its_viewers_and_comes_whole() {
    let mut agent = Agent::start().await;
    agent.terminal(session("ses_1", "stty -onlcr; echo ready; read x; seq 1 1000000")).await.unwrap();
    let (mut one, mut two) = (agent.view("ses_1").await, agent.view("ses_1").await);
    one.shows("ready").await;
    agent.enter("ses_1", "").await;
    let numbers: String = (1..=1_000_000).map(|n| format!("{n}\n")).collect();
    // What was typed is shown before.
    tokio::join!(one.ends(), two.ends());
    assert!(one.text().ends_with(&numbers) && two.text().ends_with(&numbers));
}

#[tokio::test]
async fn a_viewer_that_does_not_move_is_left_behind_and_shown_the_screen_when_it_does() {
    let mut agent = Agent::start().await;
    agent
        .terminal(session("ses_1", "echo ready; read x; seq 1 2000000; echo the end; read x"))
        .await
        .unwrap();
    let (mut one, mut stuck) = (agent.view("ses_1").await, agent.view("ses_1").await);
    one.shows("ready").await;
    agent.enter("ses_1", "").await;
    one.shows("\r\n2000000\r\nthe end").await;
    assert!(one.seen.len() > 15_000_000);
    stuck.shows("the end").await;
    assert!(stuck.seen.len() < 10_000_000, "{} bytes", stuck.seen.len());
    assert_eq!(stuck.screen(), one.screen());
}
