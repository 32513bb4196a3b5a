//! OpenSSH as the client, with what rides on it.

use std::process::Stdio;
use std::sync::atomic::Ordering;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::world::{Wish, World, finish, has, noise, text};

#[tokio::test(flavor = "multi_thread")]
async fn a_command_has_its_own_output_errors_environment_and_exit_status() {
    let (true, world) = (has("ssh"), World::new().await) else { return };
    let line = "echo out $LC_TEST; echo err >&2; exit 7";
    let done = world.ssh(&["-o", "SetEnv=LC_TEST=yes"], &[line], b"").await;
    assert_eq!((text(&done.stdout), text(&done.stderr)), ("out yes\n".into(), "err\n".into()));
    assert_eq!(done.status.code(), Some(7));
    let killed = world.ssh(&[], &["kill -TERM $$"], b"").await;
    assert_eq!(killed.status.code(), Some(128 + 15));
    let shell = world.ssh(&["-T"], &[], b"echo I read a script\nexit 3\n").await;
    assert_eq!((text(&shell.stdout), shell.status.code()), ("I read a script\n".into(), Some(3)));
    let sftp = world.ssh(&["-s"], &["sftp"], b"hello").await;
    assert_eq!(text(&sftp.stdout), "this is sftp\nhello");
    let claims = world.machines.0.entered.lock().unwrap()[0].clone();
    assert_eq!((claims.sandbox_id, claims.user.as_str()), (world.sandbox, "root"));
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_megabytes_pass_both_ways_unchanged_to_the_end_of_the_input() {
    let (true, world) = (has("ssh"), World::new().await) else { return };
    let sent = noise(10 << 20);
    let echoed = world.ssh(&[], &["cat"], &sent).await;
    assert!(echoed.status.success() && echoed.stdout == sent, "{}", text(&echoed.stderr));
    let counted = world.ssh(&[], &["wc -c"], &sent).await;
    assert_eq!(text(&counted.stdout).trim(), sent.len().to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn scp_and_rsync_copy_files_both_ways() {
    let (true, world) = (has("scp"), World::new().await) else { return };
    let (there, back) = (world.home("there"), world.path("back"));
    let sent = noise(3 << 20);
    std::fs::write(world.path("here"), &sent).unwrap();
    let copy = async |from: &str, to: &str| {
        let mut scp = world.client("scp");
        let done = finish(scp.arg("-O").arg(from).arg(to).spawn().unwrap(), b"").await;
        assert!(done.status.success(), "{}", text(&done.stderr));
    };
    copy(world.path("here").to_str().unwrap(), "root@127.0.0.1:there").await;
    assert!(std::fs::read(&there).unwrap() == sent);
    copy("root@127.0.0.1:there", back.to_str().unwrap()).await;
    assert!(std::fs::read(&back).unwrap() == sent);
    if !has("rsync") {
        return;
    }
    std::fs::create_dir_all(world.path("tree/of/files")).unwrap();
    std::fs::write(world.path("tree/of/files/one"), &sent).unwrap();
    let mut rsync = tokio::process::Command::new("rsync");
    rsync.args(["-a", "-e", &format!("ssh {}", world.options().join(" "))]).arg(world.path("tree"));
    rsync.arg("root@127.0.0.1:").stdin(Stdio::null()).stderr(Stdio::piped());
    let done = finish(rsync.spawn().unwrap(), b"").await;
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert!(std::fs::read(world.home("tree/of/files/one")).unwrap() == sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_commands_share_a_connection_and_one_that_does_not_read_stalls_none() {
    let (true, world) = (has("ssh"), World::new().await) else { return };
    let control = format!("ControlPath={}", world.path("control").display());
    let master = world.ssh(&["-o", &control, "-M", "-N", "-f"], &[], b"").await;
    assert!(master.status.success(), "{}", text(&master.stderr));
    // More than a channel's window, to a program that reads nothing.
    let mut deaf = world.client("ssh");
    deaf.args(["-o", &control, "root@127.0.0.1", "exec sleep 1000"]).stdin(Stdio::piped());
    let mut deaf = deaf.spawn().unwrap();
    deaf.stdin.as_mut().unwrap().write_all(&noise(8 << 20)).await.unwrap();
    let commands = (0..20).map(|n| {
        let (world, control) = (&world, &control);
        async move {
            let input = noise(100_000 + n);
            let done = world.ssh(&["-o", control], &["cat"], &input).await;
            assert!(done.stdout == input, "{n}: {}", text(&done.stderr));
        }
    });
    futures::future::join_all(commands).await;
    assert_eq!(world.machines.0.entered.lock().unwrap().len(), 1);
    deaf.kill().await.unwrap();
    // OpenSSH closes the channel when next something wakes it.
    assert!(world.ssh(&["-o", &control], &["true"], b"").await.status.success());
    world.programs(0, 1).await;
    world.ssh(&["-o", &control, "-O", "exit"], &[], b"").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_holds_its_program_back() {
    let (true, world) = (has("ssh"), World::new().await) else { return };
    let all = 200 << 20;
    let mut slow = world.client("ssh");
    let mut slow = slow.args(["root@127.0.0.1", &format!("head -c {all} /dev/zero")]).spawn().unwrap();
    let mut output = slow.stdout.take().unwrap();
    let mut first = [0];
    output.read_exact(&mut first).await.unwrap();
    for _ in 0..5 {
        assert!(world.ssh(&[], &["true"], b"").await.status.success());
    }
    let taken = world.machines.0.taken.load(Ordering::SeqCst);
    assert!(taken < 32 << 20, "{taken} bytes were taken for a client that reads nothing");
    let mut rest = tokio::io::sink();
    assert_eq!(tokio::io::copy(&mut output, &mut rest).await.unwrap(), all - 1);
    assert!(slow.wait().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_dies_takes_its_programs_with_it() {
    let (true, world) = (has("ssh"), World::new().await) else { return };
    let mut client = world.client("ssh");
    let mut client = client.args(["root@127.0.0.1", "exec sleep 1000"]).spawn().unwrap();
    world.programs(1, 0).await;
    client.kill().await.unwrap();
    world.programs(0, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn people_read_why_they_are_not_let_in_and_why_they_have_to_leave() {
    let (true, world) = (has("ssh"), World::new().await) else { return };
    let line = async |world: &World| {
        let mut client = world.client("ssh");
        client.args(["root@127.0.0.1", "exec sleep 1000"]).spawn().unwrap()
    };
    let client = line(&world).await;
    world.programs(1, 0).await;
    world.paused.cancel();
    let left = finish(client, b"").await;
    assert!(text(&left.stderr).contains("the sandbox was paused or removed"), "{}", text(&left.stderr));
    world.programs(0, 1).await;

    world.machines.0.sandboxes.lock().unwrap().clear();
    let refused = world.ssh(&[], &["true"], b"").await;
    let says = format!("nullspace: sandbox {} does not exist", world.sandbox);
    assert!(text(&refused.stderr).contains(&says), "{}", text(&refused.stderr));
    assert_eq!(refused.status.code(), Some(255));

    let world = World::new().await;
    let client = line(&world).await;
    world.programs(1, 0).await;
    world.stop.cancel();
    world.tasks.close();
    tokio::time::timeout(crate::world::PATIENCE, world.tasks.wait()).await.expect("the relay stops");
    let left = finish(client, b"").await;
    assert!(text(&left.stderr).contains("the server is stopping"), "{}", text(&left.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_every_usual_kind_are_good() {
    let (true, world) = (has("ssh-keygen"), World::new().await) else { return };
    for kind in ["rsa", "ecdsa", "ed25519"] {
        let _ = std::fs::remove_file(world.path("key"));
        let mut keygen = tokio::process::Command::new("ssh-keygen");
        let made = keygen.args(["-q", "-t", kind, "-N", "", "-f"]).arg(world.path("key")).status().await;
        assert!(made.unwrap().success());
        let public = std::fs::read_to_string(world.path("key.pub")).unwrap();
        let public = russh::keys::PublicKey::from_openssh(&public).unwrap();
        world.identify(&Wish::default().certify(world.sandbox, &public));
        let done = world.ssh(&[], &["echo in"], b"").await;
        assert_eq!(text(&done.stdout), "in\n", "{kind}: {}", text(&done.stderr));
    }
}
