use nullspace_server::args::{KeyAction, KeyStoreArgs};
use nullspace_server::{KeyAnswer, KeyArgs, key};
use nullspace_tests_api::Harness;

fn store(server: &Harness) -> KeyStoreArgs {
    KeyStoreArgs { data_dir: server.data_dir(), config: None }
}

#[tokio::test]
async fn a_key_is_made_listed_and_revoked_while_the_server_runs() {
    let mut server = Harness::start().await;
    let create = KeyAction::Create { store: store(&server), tenant: "acme".into(), label: "laptop".into() };
    let KeyAnswer::Created { key: made, secret } = key(KeyArgs { action: create }).await.unwrap() else {
        panic!("a create answers a new key")
    };
    server.key = secret.clone();
    server.get("/v1/sandboxes").await.expect(200);

    let listed =
        key(KeyArgs { action: KeyAction::List { store: store(&server) } }).await.unwrap().to_string();
    let row = listed.lines().find(|line| line.contains("acme")).expect("it is listed");
    assert!(
        row.contains(&made.id.to_string()) && row.contains("active") && row.ends_with("laptop"),
        "{listed}"
    );
    assert!(!listed.contains(&secret), "a secret is shown once");

    let revoke = KeyAction::Revoke { id: made.id.to_string(), store: store(&server) };
    key(KeyArgs { action: revoke }).await.unwrap();
    let answer = server
        .until(|| async {
            let answer = server.get("/v1/sandboxes").await;
            (answer.status != 200).then_some(answer)
        })
        .await;
    answer.refused(401, "unauthorized");
}

#[tokio::test]
async fn a_directory_that_is_no_servers_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("mistyped");
    let list = KeyAction::List { store: KeyStoreArgs { data_dir: missing.clone(), config: None } };
    let error = key(KeyArgs { action: list }).await.unwrap_err().to_string();
    assert!(error.contains("is not the data directory of a server"), "{error}");
    assert!(!missing.exists());
}
