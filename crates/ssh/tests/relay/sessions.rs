//! What a client asks for on its channels, one request at a time.

use russh::client::Msg;
use russh::{Channel, ChannelMsg, Disconnect, Sig};

use crate::world::{PATIENCE, Wish, World, key, text};

/// What comes on a channel: all of its output up to `until`, or its end.
async fn output(channel: &mut Channel<Msg>, until: &str) -> String {
    let reading = async {
        let mut seen = Vec::new();
        while !text(&seen).contains(until) {
            match channel.wait().await.expect("the channel ended") {
                ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. } => {
                    seen.extend_from_slice(&data)
                }
                _ => {}
            }
        }
        text(&seen)
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("it never came")
}

async fn status(channel: &mut Channel<Msg>) -> u32 {
    let reading = async {
        loop {
            if let ChannelMsg::ExitStatus { exit_status } = channel.wait().await.expect("the channel ended") {
                return exit_status;
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("it never came")
}

/// Whether the last request was granted.
async fn granted(channel: &mut Channel<Msg>) -> bool {
    loop {
        match channel.wait().await.expect("the channel ended") {
            ChannelMsg::Success => return true,
            ChannelMsg::Failure => return false,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_its_size_its_keys_and_its_exit_status() {
    let world = World::new().await;
    let client = world.enter().await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel.request_pty(true, "xterm-256color", 80, 24, 0, 0, &[]).await.unwrap();
    channel.request_shell(true).await.unwrap();
    assert!(output(&mut channel, "\r\n").await.contains("a shell on xterm-256color 80x24"));
    channel.window_change(132, 50, 0, 0).await.unwrap();
    assert_eq!(output(&mut channel, "\r\n").await, "now 132x50\r\n");
    channel.data(&b"hello"[..]).await.unwrap();
    assert_eq!(output(&mut channel, "hello").await, "hello");
    channel.signal(Sig::INT).await.unwrap();
    assert_eq!(output(&mut channel, "\u{3}").await, "\u{3}");
    channel.data(&b"exit 5"[..]).await.unwrap();
    assert_eq!(status(&mut channel).await, 5);

    let mut line = client.channel_open_session().await.unwrap();
    line.request_pty(true, "dumb", 10, 10, 0, 0, &[]).await.unwrap();
    line.exec(true, "top").await.unwrap();
    assert!(output(&mut line, "\r\n").await.contains("top on dumb 10x10"));
    client.disconnect(Disconnect::ByApplication, "", "").await.unwrap();
    let mut ended = world.machines.0.terminals_ended.subscribe();
    let both = ended.wait_for(|ended| *ended == 2);
    tokio::time::timeout(PATIENCE, both).await.expect("a terminal outlives its client").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_reach_the_program() {
    let world = World::new().await;
    let client = world.enter().await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel.exec(true, "trap 'exit 9' USR1; echo ready; while :; do sleep 0.01; done").await.unwrap();
    output(&mut channel, "ready").await;
    channel.signal(Sig::USR1).await.unwrap();
    assert_eq!(status(&mut channel).await, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_displays_other_subsystems_and_second_programs_are_refused() {
    let world = World::new().await;
    let client = world.enter().await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel.agent_forward(true).await.unwrap();
    assert!(!granted(&mut channel).await);
    channel.request_x11(true, false, "MIT-MAGIC-COOKIE-1", "00", 0).await.unwrap();
    assert!(!granted(&mut channel).await);
    channel.request_subsystem(true, "netconf").await.unwrap();
    assert!(!granted(&mut channel).await);
    channel.set_env(true, "A B", "x").await.unwrap();
    assert!(!granted(&mut channel).await);
    channel.exec(true, &b"echo \xff"[..]).await.unwrap();
    assert!(!granted(&mut channel).await);
    channel.exec(true, "exec cat").await.unwrap();
    assert!(granted(&mut channel).await);
    channel.exec(true, "echo twice").await.unwrap();
    assert!(!granted(&mut channel).await);
    channel.data(&b"still here"[..]).await.unwrap();
    assert_eq!(output(&mut channel, "still here").await, "still here");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_a_bounded_number_of_channels_and_gets_them_back() {
    let config = nullspace_ssh::Config { channels_max: 2, ..Default::default() };
    let world = World::with(config).await;
    let client = world.enter().await;
    for _ in 0..3 {
        let mut first = client.channel_open_session().await.unwrap();
        let second = client.channel_open_session().await.unwrap();
        assert!(client.channel_open_session().await.is_err());
        first.exec(true, "exit 4").await.unwrap();
        assert_eq!(status(&mut first).await, 4);
        while first.wait().await.is_some() {}
        second.close().await.unwrap();
        // A place is free when whoever had it has ended: that is seen by trying.
        let mut third = client.channel_open_session().await;
        while third.is_err() {
            third = client.channel_open_session().await;
        }
        third.unwrap().close().await.unwrap();
        while world.machines.0.programs.borrow().0 > 0 {
            tokio::task::yield_now().await;
        }
        let mut free = client.channel_open_session().await;
        while free.is_err() {
            free = client.channel_open_session().await;
        }
        free.unwrap().close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_without_extensions_gives_no_terminal_and_no_ports() {
    let world = World::new().await;
    let wish = Wish { extensions: &[], ..Wish::default() };
    let mut client = world.connect("127.0.0.1").await.unwrap();
    let certificate = wish.certify(world.sandbox, key(3).public_key());
    let shown = client.authenticate_openssh_cert("root", std::sync::Arc::new(key(3)), certificate).await;
    assert!(shown.unwrap().success());
    let mut channel = client.channel_open_session().await.unwrap();
    channel.request_pty(true, "xterm", 80, 24, 0, 0, &[]).await.unwrap();
    assert!(!granted(&mut channel).await);
    assert!(client.channel_open_direct_tcpip("127.0.0.1", 1, "127.0.0.1", 1).await.is_err());
    assert!(client.tcpip_forward("localhost", 0).await.is_err());
    channel.exec(true, "exit 6").await.unwrap();
    assert_eq!(status(&mut channel).await, 6);
}
