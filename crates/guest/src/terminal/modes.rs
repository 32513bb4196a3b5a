//! Settings of a terminal that change what it sends, not what it shows: mouse, pasting, keypad, cursor
//! style. The model of the screen knows nothing of them; a viewer that comes later needs them as well.
//!
//! Sequences are those of xterm ("XTerm Control Sequences"). Of settings that exclude each other only the
//! last counts, and resetting any of them resets them all, as it does there.

use std::fmt::Write;

const ESCAPE: u8 = 0x1b;
/// Longer control sequences are none of ours.
const LONGEST: usize = 64;

/// See the module.
#[derive(Default)]
pub struct Modes {
    /// 9, 1000, 1002 or 1003; 0: mouse events are not sent.
    mouse: u16,
    /// 1005, 1006, 1015 or 1016; 0: the plain one.
    mouse_encoding: u16,
    /// 1004
    focus: bool,
    /// 2004
    bracketed_paste: bool,
    /// DECKPAM
    keypad: bool,
    /// DECSCUSR; 0: the terminal's own.
    cursor_style: u16,
    at: At,
}

/// Where in a sequence the last bytes ended.
#[derive(Default)]
enum At {
    #[default]
    Ground,
    Escape,
    Control(Vec<u8>),
}

/// Back to how a terminal begins.
pub const RESET: &str = "\x1b[?9l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1005l\x1b[?1006l\x1b[?1015l\x1b[?1016l\
                         \x1b[?1004l\x1b[?2004l\x1b>\x1b[0 q";

impl Modes {
    /// Takes what the program wrote, in pieces of any length.
    pub fn feed(&mut self, mut data: &[u8]) {
        loop {
            if matches!(self.at, At::Ground) {
                let Some(escape) = memchr::memchr(ESCAPE, data) else { return };
                data = &data[escape..];
            }
            let Some((byte, rest)) = data.split_first() else { return };
            data = rest;
            self.at = match (std::mem::take(&mut self.at), *byte) {
                (_, ESCAPE) => At::Escape,
                (At::Escape, b'[') => At::Control(Vec::new()),
                (At::Escape, byte) => {
                    match byte {
                        b'=' => self.keypad = true,
                        b'>' => self.keypad = false,
                        b'c' => *self = Self::default(),
                        _ => {}
                    }
                    At::Ground
                }
                // CAN and SUB break a sequence off; other control characters have no part in it.
                (At::Control(_), 0x18 | 0x1a) => At::Ground,
                (At::Control(sequence), 0..0x20 | 0x7f) => At::Control(sequence),
                (At::Control(mut sequence), byte) => {
                    sequence.push(byte);
                    if (0x40..=0x7e).contains(&byte) {
                        self.apply(&sequence);
                        At::Ground
                    } else if sequence.len() == LONGEST {
                        At::Ground
                    } else {
                        At::Control(sequence)
                    }
                }
                (At::Ground, _) => At::Ground,
            };
        }
    }

    fn apply(&mut self, sequence: &[u8]) {
        match sequence {
            [b'?', modes @ .., on @ (b'h' | b'l')] => {
                for mode in modes.split(|byte| *byte == b';').filter_map(number) {
                    self.set(mode, *on == b'h');
                }
            }
            [style @ .., b' ', b'q'] => self.cursor_style = number(style).unwrap_or(0),
            b"!p" => self.keypad = false,
            _ => {}
        }
    }

    fn set(&mut self, mode: u16, on: bool) {
        let value = if on { mode } else { 0 };
        match mode {
            9 | 1000 | 1002 | 1003 => self.mouse = value,
            1005 | 1006 | 1015 | 1016 => self.mouse_encoding = value,
            1004 => self.focus = on,
            2004 => self.bracketed_paste = on,
            _ => {}
        }
    }

    /// What gives a terminal that was reset these settings.
    pub fn write(&self, out: &mut String) {
        let switches = [
            (self.mouse, self.mouse > 0),
            (self.mouse_encoding, self.mouse_encoding > 0),
            (1004, self.focus),
            (2004, self.bracketed_paste),
        ];
        for (mode, _) in switches.iter().filter(|(_, on)| *on) {
            // A string takes everything.
            let _ = write!(out, "\x1b[?{mode}h");
        }
        if self.keypad {
            out.push_str("\x1b=");
        }
        if self.cursor_style > 0 {
            let _ = write!(out, "\x1b[{} q", self.cursor_style);
        }
    }
}

fn number(text: &[u8]) -> Option<u16> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(pieces: &[&str]) -> String {
        let mut modes = Modes::default();
        pieces.iter().for_each(|piece| modes.feed(piece.as_bytes()));
        let mut out = String::new();
        modes.write(&mut out);
        out
    }

    #[test]
    fn the_last_setting_counts_however_its_sequence_was_cut() {
        assert_eq!(after(&["plain \x1b[31mred\x1b[?25l"]), "");
        let vim = "\x1b[?1049h\x1b[?1h\x1b=\x1b[?2004h\x1b[?1000;1006h\x1b[2 q";
        let all = "\x1b[?1000h\x1b[?1006h\x1b[?2004h\x1b=\x1b[2 q";
        assert_eq!(after(&[vim]), all);
        for cut in 0..vim.len() {
            assert_eq!(after(&[&vim[..cut], &vim[cut..]]), all, "{cut}");
        }
        assert_eq!(after(&[vim, "\x1b[?1002h", "\x1b[?1006l"]), "\x1b[?1002h\x1b[?2004h\x1b=\x1b[2 q");
        assert_eq!(after(&[vim, RESET]), "");
        assert_eq!(after(&[vim, "\x1bc"]), "");
    }

    #[test]
    fn what_is_no_whole_sequence_changes_nothing() {
        assert_eq!(after(&["\x1b[?2004\x18h", "\x1b[?20\x1b[04h", "\x1b]0;[?2004h\x07"]), "");
        assert_eq!(after(&["\x1b[?20\n04h"]), "\x1b[?2004h", "as a terminal takes it");
        let long = format!("\x1b[?{}2004h", "1;".repeat(100));
        assert_eq!(after(&[&long]), "");
    }
}
