//! Those who must not come in.

use std::sync::Arc;

use nullspace_types::id::SandboxId;
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::{Certificate, PrivateKeyWithHashAlg};
use tokio_util::sync::CancellationToken;

use crate::world::{PATIENCE, Wish, World, key};

/// Whether this certificate lets in who has the key of that seed.
async fn good(world: &World, user: &str, certificate: Certificate, seed: u8) -> bool {
    let mut client = world.connect("127.0.0.1").await.expect("the relay answers");
    let shown = client.authenticate_openssh_cert(user, Arc::new(key(seed)), certificate);
    let shown = tokio::time::timeout(PATIENCE, shown).await.expect("the relay judges");
    shown.is_ok_and(|shown| shown.success())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_certificate_of_the_authority_for_this_user_at_this_time_is_good() {
    let world = World::new().await;
    let certify = |wish: Wish| wish.certify(world.sandbox, key(3).public_key());
    assert!(good(&world, "root", certify(Wish::default()), 3).await);
    let other = |key_id: &str| Some(key_id.to_owned());
    for (what, wish) in [
        ("expired", Wish { from: -600, until: -1, ..Wish::default() }),
        ("not good yet", Wish { from: 300, ..Wish::default() }),
        ("of another authority", Wish { authority: key(9), ..Wish::default() }),
        ("of its own", Wish { authority: key(3), ..Wish::default() }),
        ("for another user", Wish { user: "user", ..Wish::default() }),
        ("for a host", Wish { kind: CertType::Host, ..Wish::default() }),
        ("with a critical option", Wish { critical: true, ..Wish::default() }),
        ("with a key ID of another form", Wish { key_id: other("root"), ..Wish::default() }),
        ("with two key IDs", Wish { key_id: other("sshacc_1:sb_2:ten_3:key_4:key_5"), ..Wish::default() }),
    ] {
        assert!(!good(&world, "root", certify(wish), 3).await, "{what}");
    }
    let stolen = certify(Wish::default());
    assert!(!good(&world, "root", stolen, 4).await, "stolen: without its key");
    assert_eq!(world.machines.0.entered.lock().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_with_any_part_changed_is_good_for_nothing() {
    let world = World::new().await;
    let genuine = Wish::default().certify(world.sandbox, key(3).public_key()).to_bytes().unwrap();
    // Not each byte: that would be the peers' table that is tested.
    let parts = (40..genuine.len()).step_by(genuine.len() / 12);
    for part in parts {
        let mut forged = genuine.clone();
        forged[part] ^= 0x10;
        if let Ok(forged) = Certificate::from_bytes(&forged) {
            assert!(!good(&world, "root", forged, 3).await, "byte {part}");
        }
    }
    assert!(world.machines.0.entered.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_gives_the_one_sandbox_that_it_names() {
    let world = World::new().await;
    let other = SandboxId::new();
    world.machines.0.sandboxes.lock().unwrap().insert(other, CancellationToken::new());
    let mut client = world.connect("127.0.0.1").await.unwrap();
    let certificate = Wish::default().certify(other, key(3).public_key());
    let shown = client.authenticate_openssh_cert("root", Arc::new(key(3)), certificate).await;
    assert!(shown.unwrap().success());
    let mut channel = client.channel_open_session().await.unwrap();
    channel.exec(true, "true").await.unwrap();
    while channel.wait().await.is_some() {}
    let entered = world.machines.0.entered.lock().unwrap();
    assert_eq!(entered.iter().map(|claims| claims.sandbox_id).collect::<Vec<_>>(), [other]);
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_and_plain_keys_are_refused_and_attempts_are_counted() {
    let world = World::new().await;
    let mut client = world.connect("127.0.0.1").await.unwrap();
    assert!(!client.authenticate_none("root").await.unwrap().success());
    assert!(!client.authenticate_password("root", "root").await.unwrap().success());
    let mut attempts = 2;
    loop {
        let key = PrivateKeyWithHashAlg::new(Arc::new(key(3)), None);
        match client.authenticate_publickey("root", key).await {
            Ok(shown) if !shown.success() => attempts += 1,
            Ok(_) => panic!("a plain key is no certificate"),
            Err(_) => break,
        }
    }
    // The client counts the one at which it is cut off.
    assert!(attempts <= 7, "{attempts} attempts were judged");
    assert!(world.connect("127.0.0.1").await.unwrap().channel_open_session().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_bad_logins_hurt_nobody_else() {
    let world = World::new().await;
    let inside = world.enter().await;
    let certificate =
        Wish { authority: key(9), ..Wish::default() }.certify(world.sandbox, key(3).public_key());
    let attackers = (0..20).map(|_| async {
        for _ in 0..50 {
            if let Ok(mut client) = world.connect("127.0.0.1").await {
                let shown =
                    client.authenticate_openssh_cert("root", Arc::new(key(3)), certificate.clone()).await;
                assert!(!shown.is_ok_and(|shown| shown.success()));
            }
        }
    });
    let elsewhere = async {
        for _ in 0..20 {
            let mut client = world.connect("127.0.0.2").await.expect("others are let in");
            let good = Wish::default().certify(world.sandbox, key(3).public_key());
            let shown = client.authenticate_openssh_cert("root", Arc::new(key(3)), good).await;
            assert!(shown.unwrap().success());
            let mut channel = inside.channel_open_session().await.expect("who is in stays in");
            channel.exec(true, "true").await.unwrap();
            while channel.wait().await.is_some() {}
        }
    };
    tokio::join!(futures::future::join_all(attackers), elsewhere);
    assert!(world.connect("127.0.0.1").await.is_err(), "who failed so often waits");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_log_in_is_cut() {
    use tokio::io::AsyncReadExt as _;
    let config = nullspace_ssh::Config { login_secs: 1, ..Default::default() };
    let world = World::with(config).await;
    let mut silent = tokio::net::TcpStream::connect(world.address).await.unwrap();
    let mut seen = Vec::new();
    let cut = tokio::time::timeout(PATIENCE, silent.read_to_end(&mut seen)).await;
    assert!(cut.is_ok() && seen.starts_with(b"SSH-2.0-nullspace\r\n"));
}
