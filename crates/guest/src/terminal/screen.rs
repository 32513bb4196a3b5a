//! What a terminal shows now, as a model that is fed with everything its program writes.
//!
//! The model is `avt`, which can say what a terminal of the same size must be sent to come to the same
//! state: both screens, cursor, margins, character sets, and a sequence that is not complete yet. Around it
//! are the bytes of a character that is not complete yet, the settings it does not know (`modes`), and some
//! lines of what has scrolled off the screen.

use std::fmt::Write;

use avt::{Color, Line, Pen, ScreenKind, Terminal};
use bytes::Bytes;
use unicode_width::UnicodeWidthChar;

use super::Size;
use super::modes::{self, Modes};

/// Lines above the screen that are kept.
pub const SCROLLBACK: usize = 200;

/// See the module.
pub struct Screen {
    terminal: Terminal,
    modes: Modes,
    /// The beginning of a character.
    partial: Vec<u8>,
    blank: bool,
}

/// From any state to a clean primary screen with the cursor at its beginning.
const CLEAN: &str = "\x1b[?1049l\x1b[!p\x1b[?7h\x1b[?1l\x1b[20l\x1b[m\x1b[H\x1b[2J";

impl Screen {
    pub fn new(size: Size) -> Self {
        let terminal = Terminal::with_scrollback(size.cols.into(), size.rows.into(), Some(SCROLLBACK))
            .expect("both sides are positive");
        Self { terminal, modes: Modes::default(), partial: Vec::new(), blank: true }
    }

    pub fn resize(&mut self, size: Size) {
        self.terminal.resize(size.cols.into(), size.rows.into());
    }

    /// Takes what the program wrote, in pieces of any length.
    pub fn feed(&mut self, data: &[u8]) {
        self.blank = false;
        self.modes.feed(data);
        let joined;
        let mut left = data;
        if !self.partial.is_empty() {
            joined = [&std::mem::take(&mut self.partial), data].concat();
            left = &joined;
        }
        loop {
            let (text, bad) = match std::str::from_utf8(left) {
                Ok(text) => (text, None),
                Err(error) => {
                    let (text, rest) = left.split_at(error.valid_up_to());
                    match error.error_len() {
                        Some(len) => left = &rest[len..],
                        None => self.partial = rest.to_vec(),
                    }
                    // It is valid up to there.
                    (std::str::from_utf8(text).unwrap_or_default(), error.error_len())
                }
            };
            self.terminal.feed(text.chars().filter(takes_room));
            if bad.is_none() {
                return;
            }
            self.terminal.feed(char::REPLACEMENT_CHARACTER);
        }
    }

    /// What brings any terminal of this size to show the same: nothing, as long as nothing was written.
    pub fn redraw(&self) -> Bytes {
        if self.blank {
            return Bytes::new();
        }
        let mut out = String::from(CLEAN);
        out.push_str(modes::RESET);
        self.modes.write(&mut out);
        self.write_scrollback(&mut out);
        let mut state = spelled_out(&self.terminal.dump());
        if self.terminal.active_screen_kind() == ScreenKind::Alternate {
            // The one of its spellings that every terminal knows.
            state = state.replacen("\x1b[?1047h", "\x1b[?1049h", 1);
        }
        // An incomplete sequence is dumped with the one-character introducers, which few terminals take.
        for (short, long) in
            [('\u{9b}', "\x1b["), ('\u{9d}', "\x1b]"), ('\u{90}', "\x1bP"), ('\u{98}', "\x1bX")]
        {
            if state.contains(short) {
                state = state.replace(short, long);
            }
        }
        out.push_str(&state);
        let mut out = out.into_bytes();
        out.extend_from_slice(&self.partial);
        out.into()
    }

    /// Writes the lines above the primary screen, and scrolls them off it.
    fn write_scrollback(&self, out: &mut String) {
        let rows = self.terminal.size().1;
        let screen = self.terminal.primary_screen();
        let count = screen.all_lines().count() - rows;
        if count == 0 {
            return;
        }
        let mut pen = Pen::default();
        for (number, line) in screen.all_lines().take(count).enumerate() {
            write_line(line, &mut pen, out);
            // What continues in the next line does so here.
            if !line.is_wrapped() || number + 1 == count {
                out.push_str("\r\n");
            }
        }
        // A string takes everything.
        let _ = write!(out, "\x1b[m\x1b[{rows}H");
        out.extend(std::iter::repeat_n('\n', count.min(rows - 1)));
        out.push_str("\x1b[H");
    }
}

/// Text with its repetitions (REP) written as text: not every terminal knows them, and who reads the stream
/// without one does not either.
fn spelled_out(text: &str) -> String {
    let mut parts = text.split("\x1b[");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (count, rest) = part.split_at(part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len()));
        match (rest.strip_prefix('b'), count.parse(), out.chars().next_back()) {
            (Some(rest), Ok(count), Some(last)) => {
                out.extend(std::iter::repeat_n(last, count));
                out.push_str(rest);
            }
            _ => {
                out.push_str("\x1b[");
                out.push_str(part);
            }
        }
    }
    out
}

/// Combining and other characters without a width of their own would each take a cell of the model, and DEL
/// too. Control characters, which have none either, are no text.
fn takes_room(character: &char) -> bool {
    match *character {
        '\x7f' => false,
        character if character.is_ascii() => true,
        character => character.width() != Some(0),
    }
}

fn write_line(line: &Line, pen: &mut Pen, out: &mut String) {
    let cells = line.cells();
    let wrapped = line.is_wrapped();
    let blank = |cell: &avt::Cell| cell.char() == ' ' && *cell.pen() == Pen::default();
    let len =
        if wrapped { cells.len() } else { cells.iter().rposition(|cell| !blank(cell)).map_or(0, |n| n + 1) };
    // The second cell of a wide character has no width.
    for cell in cells[..len].iter().filter(|cell| cell.width() > 0) {
        if cell.pen() != pen {
            *pen = *cell.pen();
            write_pen(pen, out);
        }
        out.push(cell.char());
    }
}

/// How text is shown, as SGR.
fn write_pen(pen: &Pen, out: &mut String) {
    out.push_str("\x1b[0");
    let attributes = [
        (pen.is_bold(), 1),
        (pen.is_faint(), 2),
        (pen.is_italic(), 3),
        (pen.is_underline(), 4),
        (pen.is_blink(), 5),
        (pen.is_inverse(), 7),
        (pen.is_strikethrough(), 9),
    ];
    for (_, code) in attributes.iter().filter(|(is_set, _)| *is_set) {
        let _ = write!(out, ";{code}");
    }
    for (color, base) in [(pen.foreground(), 30), (pen.background(), 40)] {
        let _ = match color {
            None => Ok(()),
            Some(Color::Indexed(index @ 0..8)) => write!(out, ";{}", base + index),
            Some(Color::Indexed(index @ 8..16)) => write!(out, ";{}", base + 52 + index),
            Some(Color::Indexed(index)) => write!(out, ";{};5;{index}", base + 8),
            Some(Color::RGB(rgb)) => write!(out, ";{};2;{};{};{}", base + 8, rgb.r, rgb.g, rgb.b),
        };
    }
    out.push('m');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: Size = Size { cols: 20, rows: 5 };

    fn screen(size: Size, pieces: &[&[u8]]) -> Screen {
        let mut screen = Screen::new(size);
        pieces.iter().for_each(|piece| screen.feed(piece));
        screen
    }

    /// Everything a user sees and a program relies on.
    fn state(screen: &Screen) -> String {
        let mut modes = String::new();
        screen.modes.write(&mut modes);
        format!("{}{}{:?}", screen.terminal.dump(), modes, screen.partial)
    }

    fn lines(screen: &Screen) -> Vec<String> {
        screen.terminal.screen().visible_lines().map(Line::text).collect()
    }

    fn again(screen: &Screen, size: Size, before: &[u8]) -> Screen {
        let mut again = Screen::new(size);
        again.feed(before);
        again.feed(&screen.redraw());
        again
    }

    #[test]
    fn a_screen_on_which_nothing_was_written_is_left_as_it_is() {
        assert!(screen(SIZE, &[]).redraw().is_empty());
    }

    #[test]
    fn a_full_screen_program_comes_back_with_what_lies_under_it() {
        let vim = b"$ vim\r\n\x1b[?1049h\x1b[?1h\x1b=\x1b[?2004h\x1b[2;4r\x1b[31mred\x1b[5;3H\x1b(0lqk\x1b(B";
        let screen = screen(SIZE, &[vim]);
        let text = String::from_utf8(screen.redraw().to_vec()).unwrap();
        assert!(text.contains("\x1b[?1049h") && text.contains("\u{250c}\u{2500}\u{2510}"), "{text:?}");
        let mut again = again(&screen, SIZE, b"\x1b[?1003h\x1b[?25l\x1b[4m other things");
        assert_eq!(state(&again), state(&screen));
        again.feed(b"\x1b[?1049l");
        assert_eq!(lines(&again)[0].trim_end(), "$ vim");
    }

    #[test]
    fn what_scrolled_off_is_above_the_screen_in_its_colours() {
        let mut screen = screen(SIZE, &[]);
        for line in 0..300 {
            screen.feed(
                format!("\x1b[3{}mline {line}\x1b[m {}\r\n", line % 8, "wide ".repeat(line % 6)).as_bytes(),
            );
        }
        let again = again(&screen, SIZE, b"");
        let text = screen.terminal.screen().text();
        assert_eq!(again.terminal.screen().text(), text);
        assert!(text.len() > 100 && !text[0].contains("line 0 "), "as much as is kept: {}", text[0]);
        assert_eq!(state(&again), state(&screen));
        assert!(String::from_utf8(screen.redraw().to_vec()).unwrap().contains("\x1b[0;34mline 260"));
    }

    #[test]
    fn a_character_or_a_sequence_that_is_cut_is_completed_by_what_comes_next() {
        for whole in ["\u{fc}\u{2713}\u{1f600}!", "\x1b[31;1mred", "\x1b[?25lhidden", "\x1b]0;title\x07!"] {
            for cut in 1..whole.len() {
                let (first, rest) = whole.as_bytes().split_at(cut);
                let all = screen(SIZE, &[whole.as_bytes()]);
                let mut again = again(&screen(SIZE, &[first]), SIZE, b"");
                again.feed(rest);
                assert_eq!(state(&again), state(&all), "{whole:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn a_redraw_has_its_text_as_text() {
        let screen = screen(Size { cols: 40, rows: 5 }, &[b"2000000 -------- \x1b[1m========\x1b[m\r\nx"]);
        let text = String::from_utf8(screen.redraw().to_vec()).unwrap();
        assert!(text.contains("2000000 -------- \x1b[1m========\x1b[22m    "), "{text:?}");
    }

    #[test]
    fn characters_without_width_take_no_cell() {
        let screen = screen(SIZE, &["e\u{301}x\x7f\u{200d}y\u{ff}".as_bytes(), b"\xff"]);
        assert_eq!(screen.terminal.screen().text()[0], "exy\u{ff}\u{fffd}");
    }

    /// What a program may write, sensible or not.
    fn written() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            4 => "[ -~]{1,30}".prop_map(String::into_bytes),
            1 => "\\PC{1,8}".prop_map(String::into_bytes),
            4 => (prop::collection::vec(0..40_u16, 0..4), "[?!>]?", "[@-~]").prop_map(|(numbers, mark, end)| {
                let numbers: Vec<_> = numbers.iter().map(u16::to_string).collect();
                format!("\x1b[{mark}{}{end}", numbers.join(";")).into_bytes()
            }),
            2 => prop::sample::select(vec!["\x1b[?1049h", "\x1b[?1049l", "\x1b[?6h", "\x1b[?7l", "\x1b7", "\x1b8", "\x1b(0", "\x1b(B"])
                .prop_map(|text| text.as_bytes().to_vec()),
            2 => prop::sample::select(vec![&b"\r\n"[..], b"\n", b"\t", b"\x08", b"\x1bM", b"\x1b[L", b"\xe4\xb8\xad"]).prop_map(<[u8]>::to_vec),
            1 => prop::collection::vec(any::<u8>(), 1..10),
        ];
        prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn nothing_that_is_written_at_any_size_breaks_the_model(
            pieces in prop::collection::vec((written(), 1..9_u16, 1..9_u16), 1..4),
        ) {
            let mut screen = Screen::new(Size { cols: 3, rows: 2 });
            for (data, cols, rows) in pieces {
                screen.feed(&data);
                screen.resize(Size { cols, rows });
                screen.redraw();
            }
        }

        #[test]
        fn a_redraw_shows_what_the_screen_shows(data in written(), before in written()) {
            let screen = screen(SIZE, &[&data]);
            let again = again(&screen, SIZE, &before);
            if !screen.blank {
                prop_assert_eq!(lines(&again), lines(&screen));
                prop_assert_eq!(again.terminal.cursor(), screen.terminal.cursor());
                prop_assert_eq!(again.terminal.active_screen_kind(), screen.terminal.active_screen_kind());
            }
        }
    }
}
