//! What is shown, what is refused, and how that is said.

use nullspace_edge_api::Destination;
use nullspace_types::Code;

use crate::world::*;

#[tokio::test]
async fn programs_are_refused_in_json_and_people_with_a_page() {
    let world = world(mirror().await).await;
    let get = |host: &str, more: &str| {
        format!("GET /?edge_token=nsp_revoked HTTP/1.1\r\nHost: {host}\r\n{more}Connection: close\r\n\r\n")
    };
    let answer = world.talk(get("8000-abc.preview.test", "Accept: */*\r\n")).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 401 ") && head.contains("content-type: application/json"), "{head}");
    assert!(head.contains("cache-control: no-store"), "{head}");
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["code"], "preview_grant_revoked");
    assert_eq!((&body["error"], &body["retryable"]), (&"the preview was revoked".into(), &false.into()));
    assert!(body["request_id"].as_str().unwrap().starts_with("req_") && body["suggested_action"].is_string());

    let paused = get("7-abc.preview.test", "Accept: text/html,*/*;q=0.8\r\n");
    let answer = world.talk(paused).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("retry-after: 5"), "{head}");
    assert!(head.contains("content-type: text/html") && head.contains("default-src 'none'"), "{head}");
    assert!(body.contains("Sandbox &lt;b&gt;7&lt;/b&gt; is paused."), "{body}");
    assert!(body.contains("sandbox_paused_auto_resume_disabled"), "{body}");
}

#[tokio::test]
async fn a_host_that_leads_nowhere_is_not_found_and_one_of_another_sandbox_is_judged_as_that() {
    let world = world(mirror().await).await;
    for host in
        ["8000-xyz.preview.test", "preview.test", "example.com", "127.0.0.1", "08000-abc.preview.test"]
    {
        let answer = world.talk(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{host}: {answer}");
        assert!(answer.contains("sandbox_not_found"), "{host}: {answer}");
    }
    let seen = world.edge.seen.lock().unwrap();
    let other = Destination::Host { port: 8000, label: "xyz".into() };
    assert_eq!(seen.iter().map(|seen| &seen.destination).collect::<Vec<_>>(), [&other]);
}

#[tokio::test]
async fn tokens_count_only_where_they_belong() {
    let world = world(mirror().await).await;
    let request = get("/nsp_good?x=edge_token&__ns_preview_transport=header#edge_token=nsp_good")
        + "Authorization: Bearer nsp_good\r\nX-Nullspace-Preview-Proxy-Token: nsp_p\r\n\
           Edge_Token: nsp_good\r\nCookie: edge_token=nsp_good; __ns_preview_8000=c-good\r\n\
           Connection: close\r\n\r\n";
    let answer = world.talk(request).await;
    assert!(answer.contains("GET /nsp_good?x=edge_token HTTP/1.1\r\n"), "{answer}");
    assert!(answer.contains("authorization: Bearer nsp_good\r\n"), "{answer}");
    let seen = world.edge.seen.lock().unwrap();
    let shown = &seen[0].credentials;
    assert_eq!(shown.proxy_token.as_deref(), Some("nsp_p"));
    assert!(shown.proxy_transport && shown.edge_token.is_none() && shown.cookie.is_none());
    assert!(shown.traffic_token.is_none());
}

#[tokio::test]
async fn a_service_cannot_set_the_gateways_cookies() {
    let answer = "HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nSet-Cookie: __ns_preview_20000=forged; Path=/\r\n\
                  Content-Length: 0\r\n\r\n";
    let world = world(scripted(answer).await).await;
    let answer = world.talk(get("/") + "Connection: close\r\n\r\n").await;
    assert!(answer.contains("set-cookie: a=1\r\n") && !answer.contains("forged"), "{answer}");
}

#[tokio::test]
async fn a_service_that_is_not_there_closes_early_or_sends_garbage_is_a_bad_gateway() {
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(1 << 20));
    for (answer, what) in [
        ("", "nothing"),
        ("HTTP/1.1 200 OK\r\nConte", "half a head"),
        ("garbage\r\n\r\n", "garbage"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "both lengths",
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", "two lengths"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "an unknown coding"),
        ("HTTP/1.1 200 OK\r\nX-A: b\r\n folded\r\nContent-Length: 0\r\n\r\n", "a folded line"),
        (endless.as_str(), "a head without end"),
    ] {
        let world = world(scripted(answer).await).await;
        let request = get("/?edge_token=nsp_good") + "Connection: close\r\n\r\n";
        let answer = world.talk(request).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{what}: {answer}");
        assert!(answer.contains("preview_service_not_ready"), "{what}: {answer}");
        assert_eq!(*world.edge.failed.lock().unwrap(), [Code::PreviewServiceNotReady], "{what}");
    }
    let nobody = ([127, 0, 0, 1], 1).into();
    let answer = world(nobody).await.talk(get("/") + "Connection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("retry-after: 1"), "{answer}");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_seen_to_be_cut() {
    for broken in [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n",
    ] {
        let world = world(scripted(broken).await).await;
        let answer = world.talk(get("/") + "\r\n").await;
        assert!(answer.contains("half") && !answer.ends_with("0\r\n\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn a_service_that_never_answers_is_given_up() {
    let silent = service(|mut stream| async move {
        head(&mut stream).await;
        while tokio::io::AsyncReadExt::read_u8(&mut stream).await.is_ok() {}
    })
    .await;
    let mut settings = settings();
    settings.config.answer_timeout_secs = 1;
    let world = settings.start(silent).await;
    let answer = world.talk(get("/") + "Connection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
    assert!(answer.contains("edge_runtime_host_unreachable"), "{answer}");
    // And so is a client that does not send the body that it announced.
    let answer = world.talk(get("/").replace("GET", "PUT") + "Content-Length: 9\r\n\r\nhalf").await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("stood still"), "{answer}");
}
