use std::sync::Arc;

use proptest::prelude::*;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto};

use super::*;

/// The hello that rustls sends to a host.
fn real(name: &str) -> Vec<u8> {
    let config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut written = Vec::new();
    ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut written).unwrap();
    written
}

/// A hello with these extensions, in records of `piece` bytes.
fn made(extensions: &[(u16, Vec<u8>)], piece: usize) -> Vec<u8> {
    let mut all = Vec::new();
    for (kind, content) in extensions {
        all.extend_from_slice(&kind.to_be_bytes());
        all.extend_from_slice(&(content.len() as u16).to_be_bytes());
        all.extend_from_slice(content);
    }
    let mut body = vec![3, 3];
    body.extend_from_slice(&[7; 32]);
    body.extend_from_slice(&[0, 0, 2, 0x13, 1, 1, 0]);
    body.extend_from_slice(&(all.len() as u16).to_be_bytes());
    body.extend_from_slice(&all);
    let mut message = vec![CLIENT_HELLO, 0];
    message.extend_from_slice(&(body.len() as u16).to_be_bytes());
    message.extend_from_slice(&body);
    let record = |content: &[u8]| {
        let mut record = vec![HANDSHAKE, 3, 1];
        record.extend_from_slice(&(content.len() as u16).to_be_bytes());
        record.extend_from_slice(content);
        record
    };
    message.chunks(piece).flat_map(record).collect()
}

/// The content of the extension, with names of these types.
fn names(names: &[(u8, &str)]) -> Vec<u8> {
    let mut list = Vec::new();
    for (kind, name) in names {
        list.push(*kind);
        list.extend_from_slice(&(name.len() as u16).to_be_bytes());
        list.extend_from_slice(name.as_bytes());
    }
    [&(list.len() as u16).to_be_bytes()[..], &list].concat()
}

fn shown(bytes: &[u8]) -> Result<Option<String>, Unreadable> {
    read(bytes).map(|hello| hello.expect("all of it is there").name)
}

#[test]
fn the_name_of_a_real_hello_is_found_and_an_address_is_none() {
    let hello = real("api.example.com");
    let expected = Hello { name: Some("api.example.com".into()), length: hello.len() };
    assert_eq!(read(&hello), Ok(Some(expected)));
    assert_eq!(shown(&real("192.0.2.1")), Ok(None));
}

#[test]
fn a_name_is_found_however_the_hello_is_cut_into_records() {
    for piece in [1, 2, 3, 5, 60, 1000] {
        let hello = made(&[(43, vec![2, 3, 4]), (SERVER_NAME, names(&[(0, "A.Example")]))], piece);
        assert_eq!(shown(&hello), Ok(Some("a.example".into())), "{piece}");
    }
}

#[test]
fn what_two_servers_could_read_in_two_ways_is_refused() {
    let host = || (SERVER_NAME, names(&[(0, "a.example")]));
    let wrong = [
        ("two names", made(&[(SERVER_NAME, names(&[(0, "a.example"), (0, "b.example")]))], 1000)),
        ("two extensions", made(&[host(), host()], 1000)),
        ("a name of another type", made(&[(SERVER_NAME, names(&[(1, "a.example")]))], 1000)),
        ("no name in the extension", made(&[(SERVER_NAME, names(&[]))], 1000)),
        ("a name that is none", made(&[(SERVER_NAME, names(&[(0, "a.example\0")]))], 1000)),
        (
            "bytes after the names",
            made(&[(SERVER_NAME, [names(&[(0, "a.example")]), vec![0]].concat())], 1000),
        ),
        ("a record of nothing", [&[HANDSHAKE, 3, 1, 0, 0][..], &made(&[host()], 1000)].concat()),
        ("another message", vec![HANDSHAKE, 3, 1, 0, 4, 2, 0, 0, 0]),
        ("another record", vec![HANDSHAKE, 3, 1, 0, 1, CLIENT_HELLO, 23, 3, 3, 0, 1, 0]),
        ("a hello without end", vec![HANDSHAKE, 3, 1, 0, 4, CLIENT_HELLO, 0xff, 0xff, 0xff]),
    ];
    for (what, bytes) in wrong {
        assert_eq!(read(&bytes), Err(Unreadable), "{what}");
    }
    let mut longer = made(&[host()], 1000);
    longer[4] += 1;
    longer.push(0);
    assert_eq!(read(&longer), Err(Unreadable), "bytes after the hello in its record");
}

proptest! {
    #[test]
    fn bytes_are_read_alike_however_they_come(mut bytes in prop::collection::vec(any::<u8>(), 0..300), begin in any::<bool>()) {
        if begin {
            bytes.splice(0..0, made(&[(SERVER_NAME, names(&[(0, "a.example")]))], 7));
        } else if bytes.len() > 6 {
            bytes[..6].copy_from_slice(&[HANDSHAKE, 3, 1, 0, 200, CLIENT_HELLO]);
        }
        let whole = read(&bytes);
        let first = (0..=bytes.len()).map(|end| read(&bytes[..end])).find(|outcome| *outcome != Ok(None));
        prop_assert_eq!(first.unwrap_or(Ok(None)), whole);
    }
}
