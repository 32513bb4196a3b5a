use super::*;

fn shown(lines: &[&str]) -> Result<Option<String>, Unreadable> {
    let text = lines.join("\r\n") + "\r\n\r\n";
    for end in 0..text.len() {
        assert_eq!(read(&text.as_bytes()[..end]), Ok(None), "{end} bytes of {text:?}");
    }
    let begin = read(text.as_bytes());
    assert_eq!(read((text + "more").as_bytes()), begin);
    begin.map(|head| head.expect("all of it is there").host)
}

#[test]
fn the_host_is_that_of_the_target_or_else_that_of_the_header() {
    let a = || Ok(Some("a.example".to_owned()));
    assert_eq!(shown(&["GET / HTTP/1.1", "Host: A.Example"]), a());
    assert_eq!(shown(&["GET / HTTP/1.1", "host: a.example.:8080"]), a());
    assert_eq!(shown(&["GET http://a.example/x HTTP/1.1", "Host: a.example:80"]), a());
    assert_eq!(shown(&["GET http://a.example/x HTTP/1.0"]), a());
    assert_eq!(shown(&["CONNECT a.example:443 HTTP/1.1", "Host: a.example:443"]), a());
    assert_eq!(shown(&["GET / HTTP/1.0"]), Ok(None));
    assert_eq!(shown(&["GET / HTTP/1.1", "Host: 192.0.2.1:80"]), Ok(None));
    assert_eq!(shown(&["GET / HTTP/1.1", "Host: [2001:db8::1]:80"]), Ok(None));
    assert_eq!(shown(&["GET / HTTP/1.1", "Host:"]), Ok(None));
}

#[test]
fn what_two_servers_could_read_in_two_ways_is_refused() {
    let wrong: [&[&str]; 14] = [
        &["GET / HTTP/1.1"],
        &["GET / HTTP/1.1", "Host: a.example", "Host: b.example"],
        &["GET / HTTP/1.1", "Host: a.example", "Host: a.example"],
        &["GET / HTTP/1.1", "Host: a.example, b.example"],
        &["GET / HTTP/1.1", "Host: b.example@a.example"],
        &["GET http://b.example/ HTTP/1.1", "Host: a.example"],
        &["GET http://a.example@b.example/ HTTP/1.1", "Host: b.example"],
        &["GET / HTTP/1.1", "Host : a.example"],
        &["GET / HTTP/1.1", " Host: a.example"],
        &["GET / HTTP/1.1", "X: y", " folded", "Host: a.example"],
        &["GET / HTTP/1.1", "X: y\nHost: a.example", "Z: z"],
        &["GET / HTTP/1.1\nHost: a.example", "Z: z"],
        &["POST / HTTP/1.1", "Host: a.example", "Content-Length: 4", "Transfer-Encoding: chunked"],
        &["GET / HTTP/1.1", "Host: a.example\0"],
    ];
    for lines in wrong {
        let text = lines.join("\r\n") + "\r\n\r\n";
        assert_eq!(read(text.as_bytes()), Err(Unreadable), "{text:?}");
    }
}

#[test]
fn a_head_without_end_is_refused() {
    let endless = format!("GET / HTTP/1.1\r\nHost: a.example\r\nX: {}", "x".repeat(HEAD_BYTES_MAX));
    assert_eq!(read(endless.as_bytes()), Err(Unreadable));
}
