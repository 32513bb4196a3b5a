//! Names and records of a message (RFC 1035, sections 3.1, 4.1.3 and 4.1.4), read in bounds: a resolver may
//! pass on what anybody wrote.

use std::net::Ipv4Addr;

use super::message::kind;

/// Longest name in text.
const NAME: usize = 253;
/// Records of an answer that are looked at.
const RECORDS: usize = 256;
/// Other names that may stand for the one asked for, one after the other.
const ALIASES: usize = 16;
const INTERNET: u16 = 1;

/// The name at a place, in lower case and without a dot at the end, and where what follows it begins. Names
/// with bytes that are no characters of a host's name, or with a dot inside a label, are none: they could be
/// taken for others.
pub(super) fn name(bytes: &[u8], start: usize) -> Option<(String, usize)> {
    let mut text = String::new();
    let (mut at, mut bound, mut end) = (start, start, None);
    loop {
        let length = usize::from(*bytes.get(at)?);
        match length {
            0 => return Some((text, end.unwrap_or(at + 1))),
            1..=63 => {
                let label = bytes.get(at + 1..at + 1 + length)?;
                if !label.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'.') {
                    return None;
                }
                if !text.is_empty() {
                    text.push('.');
                }
                text.extend(label.iter().map(|&byte| char::from(byte.to_ascii_lowercase())));
                at += 1 + length;
            }
            0xc0.. => {
                let low = usize::from(*bytes.get(at + 1)?);
                end = end.or(Some(at + 2));
                at = (length & 0x3f) << 8 | low;
                // Always further back, so that this ends.
                if at >= bound {
                    return None;
                }
                bound = at;
            }
            _ => return None,
        }
        if text.len() > NAME {
            return None;
        }
    }
}

struct Record<'a> {
    owner: String,
    kind: u16,
    seconds: u32,
    /// Where its data begins in the message.
    at: usize,
    data: &'a [u8],
}

/// The addresses in a message for a name, with seconds to live: those of the name itself, or of the one that
/// it is an alias of. `at` is where the answers begin.
pub(super) fn addresses(bytes: &[u8], at: usize, name: String) -> Vec<(Ipv4Addr, u32)> {
    let records = records(bytes, at);
    let (mut owner, mut seconds) = (name, u32::MAX);
    for _ in 0..ALIASES {
        let alias = records.iter().find(|record| record.kind == kind::CNAME && record.owner == owner);
        let Some(alias) = alias else { break };
        let Some((target, _)) = self::name(bytes, alias.at) else { return Vec::new() };
        (owner, seconds) = (target, seconds.min(alias.seconds));
    }
    let of_owner = records.iter().filter(|record| record.kind == kind::A && record.owner == owner);
    of_owner
        .filter_map(|record| Some((Ipv4Addr::from(<[u8; 4]>::try_from(record.data).ok()?), record)))
        .map(|(address, record)| (address, seconds.min(record.seconds)))
        .collect()
}

/// The answers, as far as they can be read. Those whose owner has no name are left out.
fn records(bytes: &[u8], mut at: usize) -> Vec<Record<'_>> {
    let count = bytes.get(6..8).map_or(0, |count| usize::from(u16::from_be_bytes([count[0], count[1]])));
    let mut records = Vec::new();
    for _ in 0..count.min(RECORDS) {
        let Some((owner, fields)) = owner(bytes, at) else { break };
        let Some(&[k1, k2, c1, c2, s1, s2, s3, s4, l1, l2]) =
            bytes.get(fields..).and_then(|rest| rest.first_chunk())
        else {
            break;
        };
        let data_at = fields + 10;
        at = data_at + usize::from(u16::from_be_bytes([l1, l2]));
        let Some(data) = bytes.get(data_at..at) else { break };
        if let Some(owner) = owner
            && u16::from_be_bytes([c1, c2]) == INTERNET
        {
            let (kind, seconds) = (u16::from_be_bytes([k1, k2]), u32::from_be_bytes([s1, s2, s3, s4]));
            records.push(Record { owner, kind, seconds, at: data_at, data });
        }
    }
    records
}

/// The owner of the record at a place, if it has a name, and where its fields begin.
fn owner(bytes: &[u8], start: usize) -> Option<(Option<String>, usize)> {
    if let Some((name, fields)) = name(bytes, start) {
        return Some((Some(name), fields));
    }
    let mut at = start;
    loop {
        match usize::from(*bytes.get(at)?) {
            0 => return Some((None, at + 1)),
            length @ 1..=63 => at += 1 + length,
            0xc0.. => return Some((None, at + 2)),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::message::Query;
    use super::*;

    fn record(owner: &[u8], kind: u16, seconds: u32, data: &[u8]) -> Vec<u8> {
        let length = u16::try_from(data.len()).unwrap().to_be_bytes();
        [owner, &kind.to_be_bytes(), &[0, 1], &seconds.to_be_bytes(), &length, data].concat()
    }

    fn answer(query: &Query, records: &[Vec<u8>]) -> Vec<u8> {
        let mut answer = query.bytes().to_vec();
        answer[2] |= 0x80;
        answer[7] = u8::try_from(records.len()).unwrap();
        answer.extend(records.concat());
        answer
    }

    /// A pointer to the name of the question.
    const ASKED: &[u8] = &[0xc0, 12];

    #[test]
    fn addresses_are_those_of_the_name_or_of_what_it_is_an_alias_of_and_no_others() {
        let query = Query::for_addresses("shop.example.test").unwrap();
        let records = [
            record(b"\x05other\x04test\x00", kind::A, 9, &[192, 0, 2, 9]),
            record(b"\x03cdn\x04test\x00", kind::A, 900, &[192, 0, 2, 1]),
            record(ASKED, kind::CNAME, 60, b"\x03CDN\x04test\x00"),
            record(b"\x03cdn\x04test\x00", kind::A, 30, &[192, 0, 2, 2]),
            record(b"\x03cdn\x04test\x00", kind::A, 30, &[192, 0, 2]),
        ];
        let expected = [([192, 0, 2, 1].into(), 60), ([192, 0, 2, 2].into(), 30)];
        assert_eq!(query.addresses(&answer(&query, &records)), expected);

        let direct = [record(ASKED, kind::A, 7, &[192, 0, 2, 3])];
        assert_eq!(query.addresses(&answer(&query, &direct)), [([192, 0, 2, 3].into(), 7)]);
        let round = [record(ASKED, kind::CNAME, 60, ASKED), record(ASKED, kind::A, 7, &[192, 0, 2, 3])];
        assert_eq!(query.addresses(&answer(&query, &round)).len(), 1, "an alias of itself ends");
    }

    #[test]
    fn names_that_could_be_taken_for_others_are_none() {
        for bytes in
            [&b"\x03a.b\x04test\x00"[..], b"\x02a\x00\x04test\x00", b"\x02a \x00", b"\xc0\x00", b"\x03ab"]
        {
            assert_eq!(name(bytes, 0), None, "{bytes:?}");
        }
        assert_eq!(name(b"\x01A\x04Test\x00", 0), Some(("a.test".into(), 8)));
    }

    proptest! {
        #[test]
        fn no_answer_is_misread(
            noise in prop::collection::vec(any::<u8>(), 0..400),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            start in 0..400usize,
        ) {
            let query = Query::for_addresses("example.test").unwrap();
            let mut near_valid = answer(&query, &[
                record(ASKED, kind::CNAME, 60, b"\x01x\xc0\x0c"),
                record(b"\x01x\xc0\x0c", kind::A, 30, &[192, 0, 2, 2]),
            ]);
            let valid = near_valid.clone();
            for (index, byte) in changes {
                let at = index.index(near_valid.len());
                near_valid[at] = byte;
            }
            prop_assert_eq!(query.addresses(&valid).len(), 1);
            for bytes in [noise, near_valid] {
                let _ = query.addresses(&bytes);
                prop_assert!(addresses(&bytes, start, "example.test".into()).len() <= RECORDS);
                prop_assert!(name(&bytes, start).is_none_or(|(name, _)| name.len() <= NAME));
            }
        }
    }
}
