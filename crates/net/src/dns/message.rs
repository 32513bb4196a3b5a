//! The little of RFC 1035 that a relay needs, over bytes that the machine or a resolver chose.

use std::net::Ipv4Addr;

use super::records;

/// A header, and nothing is shorter.
pub(super) const HEADER: usize = 12;
/// Longest name: 255 bytes; a question adds type and class.
const LONGEST_QUESTION: usize = 255 + 4;

const RESPONSE: u8 = 0x80;
const OPCODE: u8 = 0x78;
const TRUNCATED: u8 = 0x02;
const RECURSION_DESIRED: u8 = 0x01;
const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;
const REFUSED: u8 = 5;

/// Kinds of records (IANA's registry of DNS parameters).
pub(super) mod kind {
    pub(in crate::dns) const A: u16 = 1;
    pub(in crate::dns) const CNAME: u16 = 5;
    pub(in crate::dns) const AAAA: u16 = 28;
    pub(in crate::dns) const SVCB: u16 = 64;
    pub(in crate::dns) const HTTPS: u16 = 65;
    pub(in crate::dns) const ANY: u16 = 255;
}

/// A query as it came: one question, to be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Query {
    bytes: Vec<u8>,
    question_end: usize,
}

impl Query {
    /// A query with exactly one question; `None` for all else, which gets no answer.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let flags = *bytes.get(2)?;
        if flags & (RESPONSE | OPCODE) != 0 || bytes.get(4..6)? != [0, 1] {
            return None;
        }
        let question_end = question_end(bytes)?;
        Some(Self { bytes: bytes.to_vec(), question_end })
    }

    /// A query for the IPv4 addresses of a name; `None` if that is no name.
    pub(super) fn for_addresses(name: &str) -> Option<Self> {
        let mut bytes = vec![0, 0, RECURSION_DESIRED, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            bytes.push(u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?);
            bytes.extend(label.bytes());
        }
        // The root, kind A, class IN.
        bytes.extend([0, 0, 1, 0, 1]);
        Self::parse(&bytes)
    }

    /// The name that is asked for, in lower case and without a dot at the end; `None` if it cannot be
    /// written so without being taken for another.
    pub(super) fn name(&self) -> Option<String> {
        records::name(&self.bytes, HEADER).map(|(name, _)| name)
    }

    /// Which kind of records.
    pub(super) fn kind(&self) -> u16 {
        let at = self.question_end - 4;
        u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    /// The IPv4 addresses that an answer to this query gives for its name, with seconds to live.
    pub(super) fn addresses(&self, answer: &[u8]) -> Vec<(Ipv4Addr, u32)> {
        let good = self.is_answered_by(answer) && answer[3] & 0x0f == 0 && answer[4..6] == [0, 1];
        match self.name() {
            Some(name) if good => records::addresses(answer, self.question_end, name),
            _ => Vec::new(),
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn id(&self) -> [u8; 2] {
        [self.bytes[0], self.bytes[1]]
    }

    /// The same query under another ID.
    pub(super) fn with_id(&self, id: [u8; 2]) -> Self {
        let mut query = self.clone();
        query.bytes[..2].copy_from_slice(&id);
        query
    }

    /// Whether `answer` is to this query: same ID, and the same question. A resolver that could not
    /// read the query may leave the question out.
    pub(super) fn is_answered_by(&self, answer: &[u8]) -> bool {
        if answer.len() < HEADER || answer[..2] != self.bytes[..2] || answer[2] & RESPONSE == 0 {
            return false;
        }
        match answer[4..6] {
            [0, 0] => answer[3] & 0x0f != 0,
            [0, 1] => answer.get(HEADER..self.question_end).is_some_and(|question| {
                question.eq_ignore_ascii_case(&self.bytes[HEADER..self.question_end])
            }),
            _ => false,
        }
    }

    /// The answer that there is none.
    pub(super) fn servfail(&self) -> Vec<u8> {
        self.bare_answer(0, SERVFAIL)
    }

    /// The answer that this is not for the machine to ask.
    pub(super) fn refused(&self) -> Vec<u8> {
        self.bare_answer(0, REFUSED)
    }

    /// The answer that there is no such name.
    pub(super) fn nxdomain(&self) -> Vec<u8> {
        self.bare_answer(0, NXDOMAIN)
    }

    /// The answer that the name has no records of that kind.
    pub(super) fn empty(&self) -> Vec<u8> {
        self.bare_answer(0, 0)
    }

    /// The answer that the answer is too long for a datagram.
    pub(super) fn truncated(&self) -> Vec<u8> {
        self.bare_answer(TRUNCATED, 0)
    }

    /// Whether an answer says that it is not whole.
    pub(super) fn is_truncated(answer: &[u8]) -> bool {
        answer.get(2).is_some_and(|flags| flags & TRUNCATED != 0)
    }

    /// Whether an answer says that the resolver could not tell.
    pub(super) fn is_failure(answer: &[u8]) -> bool {
        !answer.get(3).is_some_and(|code| [0, NXDOMAIN].contains(&(code & 0x0f)))
    }

    fn bare_answer(&self, flags: u8, code: u8) -> Vec<u8> {
        let mut answer = self.bytes[..self.question_end].to_vec();
        answer[2] = RESPONSE | flags | (answer[2] & RECURSION_DESIRED);
        answer[3] = code;
        // One question; no answers, authorities or additions.
        answer[6..HEADER].fill(0);
        answer
    }
}

/// Where the first question ends. Names in questions are not compressed.
fn question_end(bytes: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        if length > 63 {
            return None;
        }
        at += length;
    }
    let end = at + 4;
    (end <= bytes.len() && end - HEADER <= LONGEST_QUESTION).then_some(end)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A query for the addresses of `example.test`.
    pub(crate) fn query(id: [u8; 2]) -> Vec<u8> {
        let mut bytes = vec![id[0], id[1], 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend(b"\x07example\x04test\x00\x00\x01\x00\x01");
        bytes
    }

    #[test]
    fn an_answer_to_another_question_or_id_is_not_taken() {
        let asked = Query::parse(&query([1, 2])).unwrap();
        let mut answer = query([1, 2]);
        assert!(!asked.is_answered_by(&answer), "a query is no answer");
        answer[2] |= RESPONSE;
        assert!(asked.is_answered_by(&answer));
        answer[13] = b'E';
        assert!(asked.is_answered_by(&answer), "names do not have case");
        answer[13] = b'x';
        assert!(!asked.is_answered_by(&answer), "another name");
        answer[13] = b'e';
        answer[0] = 9;
        assert!(!asked.is_answered_by(&answer), "another ID");
    }

    #[test]
    fn servfail_repeats_the_question_and_nothing_else() {
        let mut bytes = query([7, 8]);
        bytes[11] = 1;
        bytes.extend(b"\x00\x00\x29\x10\x00\x00\x00\x00\x00\x00\x00");
        let answer = Query::parse(&bytes).unwrap().servfail();
        let mut expected = query([7, 8]);
        expected[2] = 0x81;
        expected[3] = 2;
        assert_eq!(answer, expected);
    }

    #[test]
    fn a_query_made_for_a_name_is_read_back() {
        let query = Query::for_addresses("a.Example.test").unwrap();
        assert_eq!((query.name().as_deref(), query.kind()), (Some("a.example.test"), kind::A));
        for wrong in ["", "a..b", &"x".repeat(64), &["x"; 200].join(".")] {
            assert_eq!(Query::for_addresses(wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_of_a_machine_or_a_resolver_are_misread(
            bytes in prop::collection::vec(any::<u8>(), 0..600),
            answer in prop::collection::vec(any::<u8>(), 0..600),
        ) {
            let mut near_valid = bytes.clone();
            if near_valid.len() >= 6 {
                near_valid[2] &= !(RESPONSE | OPCODE);
                near_valid[4..6].copy_from_slice(&[0, 1]);
            }
            for bytes in [bytes, near_valid] {
                if let Some(query) = Query::parse(&bytes) {
                    let _ = query.is_answered_by(&answer);
                    prop_assert!(query.servfail().len() <= bytes.len());
                    prop_assert_eq!(query.with_id([3, 4]).id(), [3, 4]);
                    prop_assert!(query.name().is_none_or(|name| name.len() <= 253));
                    let _ = query.kind();
                }
            }
        }
    }
}
