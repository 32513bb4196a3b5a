use nullspace_server::GcArgs;
use nullspace_tests_api::Harness;

#[tokio::test]
async fn the_operator_asks_a_running_server_through_its_own_socket_and_needs_no_key() {
    let mut server = Harness::start().await;
    let ask = |apply: bool| nullspace_server::gc(GcArgs { data_dir: server.data_dir(), apply });
    for apply in [false, true] {
        let report = ask(apply).await.expect("the server answers");
        assert_eq!((report.applied, report.bytes, report.items.len()), (apply, 0, 0));
    }
    let data_dir = server.data_dir();
    server.stop().await;
    let error = nullspace_server::gc(GcArgs { data_dir, apply: false }).await.expect_err("nobody is there");
    assert!(error.to_string().contains("no server runs on the data directory"), "{error}");
}
