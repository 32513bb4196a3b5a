//! Ports forwarded both ways by OpenSSH.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener};

use crate::world::{World, has, noise, text};

/// Answers each connection with what it sent, after its end.
fn echo(listener: TcpListener) {
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut all = Vec::new();
                stream.read_to_end(&mut all).await.unwrap();
                stream.write_all(&all).await.unwrap();
            });
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_inside_is_reached_and_half_closed() {
    let (true, world) = (has("ssh"), World::new().await) else { return };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    echo(listener);
    let sent = noise(5 << 20);
    let done = world.ssh(&["-W", &format!("127.0.0.1:{port}")], &[], &sent).await;
    assert!(done.stdout == sent, "{}", text(&done.stderr));
    let closed = world.ssh(&["-W", "127.0.0.1:1"], &[], b"").await;
    assert!(text(&closed.stderr).contains("nothing listens there"), "{}", text(&closed.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_inside_is_reached() {
    let world = World::new().await;
    let listener = UnixListener::bind(world.path("inside")).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"from a socket").await.unwrap();
    });
    let client = world.enter().await;
    let path = world.path("inside").to_str().unwrap().to_owned();
    let mut stream = client.channel_open_direct_streamlocal(path).await.unwrap().into_stream();
    let mut seen = String::new();
    stream.read_to_string(&mut seen).await.unwrap();
    assert_eq!(seen, "from a socket");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_inside_leads_to_the_client_until_it_is_cancelled() {
    let (true, world) = (has("ssh"), World::new().await) else { return };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap().port();
    echo(listener);
    let control = format!("ControlPath={}", world.path("control").display());
    let master = world.ssh(&["-o", &control, "-M", "-N", "-f"], &[], b"").await;
    assert!(master.status.success(), "{}", text(&master.stderr));
    let asked = async |what: &str, forward: &str| {
        world.ssh(&["-o", &control, "-O", what, "-R", forward], &[], b"").await
    };
    let opened = asked("forward", &format!("0:127.0.0.1:{target}")).await;
    let port: u16 =
        text(&opened.stdout).trim().parse().unwrap_or_else(|_| panic!("{}", text(&opened.stderr)));
    let sent = noise(3 << 20);
    let each = (0..5).map(|_| async {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let (mut from, mut to) = stream.into_split();
        let writing = async {
            to.write_all(&sent).await.unwrap();
            to.shutdown().await.unwrap();
        };
        let mut seen = Vec::new();
        let (_, read) = tokio::join!(writing, from.read_to_end(&mut seen));
        read.unwrap();
        assert!(seen == sent);
    });
    futures::future::join_all(each).await;
    let taken = asked("forward", &format!("{port}:127.0.0.1:{target}")).await;
    assert!(!taken.status.success(), "the port is open already");
    let cancelled = asked("cancel", &format!("0:127.0.0.1:{target}")).await;
    assert!(cancelled.status.success(), "{}", text(&cancelled.stderr));
    // The listener is dropped by its own task.
    while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
        tokio::task::yield_now().await;
    }
    world.ssh(&["-o", &control, "-O", "exit"], &[], b"").await;
}
