//! Which parts of an upload are there: numbers from 0, all of one size but for the last.

/// Parts of one upload.
pub const PARTS_MAX: u64 = 100_000;

/// See the module.
#[derive(Debug)]
pub struct Parts {
    content_length: u64,
    part_size: u64,
    count: u32,
    missing: u32,
    accepted_bytes: u64,
    /// A bit for each part.
    accepted: Vec<u64>,
}

impl Parts {
    /// None of them is there. None where there would be more than [`PARTS_MAX`], or parts of no size.
    pub fn new(content_length: u64, part_size: u64) -> Option<Self> {
        if part_size == 0 {
            return None;
        }
        let count = content_length.div_ceil(part_size);
        if count > PARTS_MAX {
            return None;
        }
        let accepted = vec![0; count.div_ceil(64) as usize];
        let count = count as u32;
        Some(Self { content_length, part_size, count, missing: count, accepted_bytes: 0, accepted })
    }

    /// How many there must be; none of an empty upload.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// How many are not there.
    pub fn missing(&self) -> u32 {
        self.missing
    }

    /// Bytes of those that are there.
    pub fn accepted_bytes(&self) -> u64 {
        self.accepted_bytes
    }

    /// Where a part begins and how long it is; none if there is no such part.
    pub fn range(&self, part: u32) -> Option<(u64, u64)> {
        let offset = u64::from(part) * self.part_size;
        (part < self.count).then(|| (offset, self.part_size.min(self.content_length - offset)))
    }

    /// Whether a part is there.
    pub fn has(&self, part: u32) -> bool {
        self.accepted.get(part as usize / 64).is_some_and(|bits| bits & (1 << (part % 64)) != 0)
    }

    /// A part has come.
    pub fn accept(&mut self, part: u32) {
        let Some((_, length)) = self.range(part).filter(|_| !self.has(part)) else { return };
        self.accepted[part as usize / 64] |= 1 << (part % 64);
        self.missing -= 1;
        self.accepted_bytes += length;
    }

    /// No part will come any more: what is needed for that is given back.
    pub fn close(&mut self) {
        self.accepted = Vec::new();
    }

    /// The lowest part that is not there, as long as one may come.
    pub fn next(&self) -> Option<u32> {
        let word = self.accepted.iter().position(|bits| *bits != u64::MAX)?;
        let part = word as u32 * 64 + self.accepted[word].trailing_ones();
        (part < self.count).then_some(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_in_any_order_and_repeated_cover_the_content_once(
            content_length in 0..2_000_u64,
            part_size in 1..50_u64,
            order in prop::collection::vec(0..2_000_u32, 0..300),
        ) {
            let mut parts = Parts::new(content_length, part_size).unwrap();
            let count = parts.count();
            let sizes: u64 = (0..count).map(|part| parts.range(part).unwrap().1).sum();
            prop_assert_eq!(sizes, content_length);
            prop_assert_eq!(parts.range(count), None);
            for part in order {
                parts.accept(part);
                prop_assert_eq!(parts.has(part), part < count);
                let there = (0..count).filter(|part| parts.has(*part));
                prop_assert_eq!(parts.missing(), count - there.clone().count() as u32);
                let bytes: u64 = there.map(|part| parts.range(part).unwrap().1).sum();
                prop_assert_eq!(parts.accepted_bytes(), bytes);
                prop_assert_eq!(parts.next(), (0..count).find(|part| !parts.has(*part)));
            }
        }
    }

    #[test]
    fn their_number_is_bounded() {
        assert_eq!(Parts::new(PARTS_MAX * 8, 8).unwrap().count() as u64, PARTS_MAX);
        assert!(Parts::new(PARTS_MAX * 8 + 1, 8).is_none());
        assert!(Parts::new(1, 0).is_none());
        assert_eq!(Parts::new(0, 8).unwrap().next(), None);
    }
}
