//! What a client has open, by the names that it was given for it. A name is never given twice.

use std::fs::{File, ReadDir};

/// What a client may have open at once.
pub const MOST: usize = 128;

/// Something open.
pub enum Open {
    File(File),
    /// Its entries that are still to be told.
    Directory(ReadDir),
}

/// See the module.
#[derive(Default)]
pub struct Handles {
    places: Vec<Option<(u32, Open)>>,
    given: u32,
}

impl Handles {
    /// Whether there is a place for one more.
    pub fn has_room(&self) -> bool {
        self.places.len() < MOST || self.places.iter().any(Option::is_none)
    }

    /// Takes one more; gives its name, if there is a place.
    pub fn put(&mut self, open: Open) -> Option<[u8; 8]> {
        let place = match self.places.iter().position(Option::is_none) {
            Some(place) => place,
            None if self.places.len() < MOST => {
                self.places.push(None);
                self.places.len() - 1
            }
            None => return None,
        };
        self.given = self.given.wrapping_add(1);
        self.places[place] = Some((self.given, open));
        let mut name = [0; 8];
        name[..4].copy_from_slice(&(place as u32).to_be_bytes());
        name[4..].copy_from_slice(&self.given.to_be_bytes());
        Some(name)
    }

    /// What has this name.
    pub fn find(&mut self, name: &[u8]) -> Option<&mut Open> {
        self.place(name)?.as_mut().map(|(_, open)| open)
    }

    /// Closes it; whether there was one.
    pub fn close(&mut self, name: &[u8]) -> bool {
        self.place(name).and_then(Option::take).is_some()
    }

    fn place(&mut self, name: &[u8]) -> Option<&mut Option<(u32, Open)>> {
        let name: [u8; 8] = name.try_into().ok()?;
        let (place, given) = name.split_at(4);
        let place = self.places.get_mut(u32::from_be_bytes(place.try_into().ok()?) as usize)?;
        let given = u32::from_be_bytes(given.try_into().ok()?);
        place.as_ref().is_some_and(|(own, _)| *own == given).then_some(place)
    }
}
