//! Sessions with a client that is none: what it sends is written out here.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::serve;
use super::wire::{Fields, kind};

fn text(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

fn packet(kind: u8, fields: &[&[u8]]) -> Vec<u8> {
    text(&[&[kind][..], &fields.concat()].concat())
}

fn greeting() -> Vec<u8> {
    packet(kind::INIT, &[&3_u32.to_be_bytes()])
}

/// A request by its number in the session.
fn request(kind: u8, id: u32, fields: &[&[u8]]) -> Vec<u8> {
    packet(kind, &[&[&id.to_be_bytes()[..]], fields].concat())
}

/// Kind, ID and rest of each reply, without the one to the greeting.
fn session(requests: &[Vec<u8>]) -> Vec<(u8, u32, Vec<u8>)> {
    let mut output = Vec::new();
    serve(&[greeting(), requests.concat()].concat()[..], &mut output).unwrap();
    let mut left = Fields(&output);
    let mut replies = Vec::new();
    while !left.0.is_empty() {
        let mut reply = Fields(left.bytes().unwrap());
        replies.push((reply.byte().unwrap(), reply.u32().unwrap(), reply.0.to_vec()));
    }
    assert_eq!((replies[0].0, replies[0].1), (kind::VERSION, 3));
    replies.remove(0);
    replies
}

fn code(reply: &(u8, u32, Vec<u8>)) -> u32 {
    assert_eq!(reply.0, kind::STATUS, "{reply:?}");
    Fields(&reply.2).u32().unwrap()
}

/// The name of the first thing that is opened in a session, and of those after it.
fn handle(number: u32) -> Vec<u8> {
    text(&[(number - 1).to_be_bytes(), number.to_be_bytes()].concat())
}

fn named(path: &Path) -> Vec<u8> {
    text(path.to_str().unwrap().as_bytes())
}

const NO_ATTRIBUTES: &[u8] = &[0; 4];
const READ: [u8; 4] = 1_u32.to_be_bytes();
const MAKE: [u8; 4] = 0x1a_u32.to_be_bytes();

#[test]
fn a_file_is_written_and_read_back_and_answers_come_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let path = named(&directory.path().join("f"));
    let at = |offset: u64| offset.to_be_bytes();
    let replies = session(&[
        request(kind::OPEN, 10, &[&path, &MAKE, NO_ATTRIBUTES]),
        request(kind::WRITE, 11, &[&handle(1), &at(3), &text(b"defg")]),
        request(kind::WRITE, 12, &[&handle(1), &at(0), &text(b"abc")]),
        request(kind::READ, 13, &[&handle(1), &at(0), &9_u32.to_be_bytes()]),
        request(kind::CLOSE, 14, &[&handle(1)]),
        request(kind::CLOSE, 15, &[&handle(1)]),
        request(kind::OPEN, 16, &[&path, &READ, NO_ATTRIBUTES]),
        request(kind::READ, 17, &[&handle(1), &at(0), &9_u32.to_be_bytes()]),
    ]);
    let ids: Vec<_> = replies.iter().map(|reply| reply.1).collect();
    assert_eq!(ids, [10, 11, 12, 13, 14, 15, 16, 17]);
    assert_eq!(replies[0].0, kind::HANDLE);
    assert_eq!((code(&replies[1]), code(&replies[2])), (0, 0));
    assert_eq!(code(&replies[3]), 2, "it was opened to be written alone");
    assert_eq!((code(&replies[4]), code(&replies[5])), (0, 4), "a handle is closed once");
    assert_eq!(code(&replies[7]), 4, "and its name is not given again");
    assert_eq!(fs::read(directory.path().join("f")).unwrap(), b"abcdefg");

    let length = u32::MAX.to_be_bytes();
    let replies = session(&[
        request(kind::OPEN, 1, &[&path, &READ, NO_ATTRIBUTES]),
        request(kind::READ, 2, &[&handle(1), &at(2), &length]),
        request(kind::READ, 3, &[&handle(1), &at(7), &length]),
    ]);
    assert_eq!((replies[1].0, &replies[1].2[..]), (kind::DATA, &text(b"cdefg")[..]));
    assert_eq!(code(&replies[2]), 1);
}

#[test]
fn so_many_handles_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let path = named(directory.path());
    let requests: Vec<_> = (0..130).map(|id| request(kind::OPENDIR, id, &[&path])).collect();
    let replies = session(&requests);
    assert!(replies[..128].iter().all(|reply| reply.0 == kind::HANDLE));
    assert!(replies[128..].iter().all(|reply| code(reply) == 4));
    let made = directory.path().join("never");
    let refused =
        [&requests[..128], &[request(kind::OPEN, 200, &[&named(&made), &MAKE, NO_ATTRIBUTES])]].concat();
    assert_eq!(code(&session(&refused)[128]), 4);
    assert!(!made.exists(), "what is refused does nothing");
}

#[test]
fn what_is_wrong_is_answered_and_what_is_no_packet_ends_the_session() {
    let nul = text(b"a\0b");
    let replies = session(&[
        request(kind::STAT, 1, &[&nul]),
        request(kind::STAT, 2, &[&text(b"/no/such/file")]),
        request(kind::OPEN, 3, &[&text(b"/")]),
        request(99, 4, &[]),
        request(kind::EXTENDED, 5, &[&text(b"x@y")]),
        request(kind::READDIR, 6, &[&text(b"12345678")]),
        request(kind::RENAME, 7, &[&text(b"/")]),
    ]);
    assert_eq!(replies.iter().map(code).collect::<Vec<_>>(), [4, 2, 5, 8, 8, 4, 5]);

    let mut sink = Vec::new();
    for broken in [
        &[0, 0, 0, 0][..],
        &[0xff; 8],
        &[0, 4, 0, 1, 1],
        &request(kind::STAT, 1, &[])[..],
        &greeting()[..6],
        &[greeting(), packet(kind::STAT, &[&[1]])].concat(),
    ] {
        assert!(serve(broken, &mut sink).is_err(), "{broken:?}");
    }
    assert!(serve(&[][..], &mut sink).is_ok());
}

proptest! {
    /// Kinds that change nothing, whatever path the bytes may name.
    #[test]
    fn no_bytes_bring_it_down(
        requests in proptest::collection::vec(
            (
                prop::sample::select(vec![
                    kind::INIT, kind::CLOSE, kind::READ, kind::WRITE, kind::LSTAT, kind::FSTAT, kind::FSETSTAT,
                    kind::OPENDIR, kind::READDIR, kind::REALPATH, kind::STAT, kind::READLINK, kind::NAME, 0, 255,
                ]),
                any::<u32>(),
                prop_oneof![
                    proptest::collection::vec(any::<u8>(), 0..40),
                    Just(text(b"/")),
                    (1..4_u32, any::<u64>(), 0..=u32::MAX).prop_map(|(number, offset, length)| {
                        [&handle(number)[..], &offset.to_be_bytes(), &length.to_be_bytes()].concat()
                    }),
                ],
            ),
            0..20,
        ),
        tail in proptest::collection::vec(any::<u8>(), 0..8),
    ) {
        let packets: Vec<_> = requests.iter().map(|(kind, id, fields)| request(*kind, *id, &[fields])).collect();
        let mut output = Vec::new();
        let _ = serve(&[greeting(), packets.concat(), tail].concat()[..], &mut output);
        let mut left = Fields(&output);
        while !left.0.is_empty() {
            prop_assert!(left.bytes().is_ok_and(|reply| reply.len() >= 5), "replies are whole packets");
        }
    }
}
