//! The only place that writes to the terminal or to a pipe. Data goes to standard output, all else
//! to standard error. Colours and movement are for terminals alone, and nothing is said by colour
//! alone.
//!
//! Text that came from a sandbox or a server is shown with its control characters escaped, so that
//! the name of a file cannot drive the terminal. The exceptions are the output of a command and
//! the content of a file, which are passed on byte for byte: that is what they were asked for.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use owo_colors::{OwoColorize, Style};
use serde::Serialize;

/// How a cell of a table is to be read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Plain,
    Good,
    Bad,
    Faint,
}

impl Mood {
    fn style(self) -> Style {
        match self {
            Self::Plain => Style::new(),
            Self::Good => Style::new().green(),
            Self::Bad => Style::new().red(),
            Self::Faint => Style::new().dimmed(),
        }
    }
}

/// One cell of a table.
pub(crate) struct Cell {
    text: String,
    mood: Mood,
}

impl Cell {
    pub(crate) fn new(text: impl Display) -> Self {
        Self::with(text, Mood::Plain)
    }

    pub(crate) fn with(text: impl Display, mood: Mood) -> Self {
        Self { text: escaped(&text.to_string()), mood }
    }
}

/// Indented by two, as one document.
pub(crate) fn json(value: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    bytes(&text)
}

/// On a line of its own, compact.
pub(crate) fn json_line(value: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec(value)?;
    text.push(b'\n');
    bytes(&text)
}

/// Exactly these bytes to standard output.
pub(crate) fn bytes(data: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(data)?;
    out.flush()
}

/// Exactly these bytes to standard error.
pub(crate) fn error_bytes(data: &[u8]) -> io::Result<()> {
    io::stderr().lock().write_all(data)
}

/// One line to standard output.
pub(crate) fn line(text: impl Display) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    writeln!(out, "{}", escaped(&text.to_string()))?;
    out.flush()
}

/// Cells separated by tabs, for programs that read lines.
pub(crate) fn row<I: IntoIterator<Item: Display>>(cells: I) -> io::Result<()> {
    let cells: Vec<_> = cells.into_iter().map(|cell| escaped(&cell.to_string())).collect();
    bytes(format!("{}\n", cells.join("\t")).as_bytes())
}

/// A text of our own, of several lines, to standard output.
pub(crate) fn page(text: &str) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Columns as wide as their widest cell, under a heading.
pub(crate) fn table(headings: &[&str], rows: &[Vec<Cell>]) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    for line in table_lines(headings, rows, usize::MAX) {
        writeln!(out, "{line}")?;
    }
    out.flush()
}

/// The lines of a table, none wider than that.
fn table_lines(headings: &[&str], rows: &[Vec<Cell>], width_max: usize) -> Vec<String> {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.text.chars().count());
        cells.chain(headings.get(column).map(|heading| heading.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = (&str, Style)>| {
        let (mut line, mut room) = (String::new(), width_max);
        for (column, (text, style)) in cells.enumerate() {
            // The last column needs no padding: lines end where their text ends.
            let padded = match widths.len() - 1 {
                last if column == last => text.to_owned(),
                _ => format!("{text:<width$}  ", width = widths[column]),
            };
            let shown: String = padded.chars().take(room).collect();
            room -= shown.chars().count();
            line += &shown.style(style).to_string();
        }
        line
    };
    let heading = line(&mut headings.iter().map(|heading| (*heading, Style::new().bold())));
    let row = |row: &Vec<Cell>| line(&mut row.iter().map(|cell| (cell.text.as_str(), cell.mood.style())));
    std::iter::once(heading).chain(rows.iter().map(row)).collect()
}

/// A table that is drawn again and again on a screen of its own. What was there before comes back when it is
/// dropped.
pub(crate) struct Screen;

impl Screen {
    pub(crate) fn enter() -> io::Result<Self> {
        // The other screen, no cursor, and no line that goes on in the next.
        bytes(b"\x1b[?1049h\x1b[?25l\x1b[?7l")?;
        Ok(Self)
    }

    /// Draws some lines of text with a table under them, as much as fits into so many columns and rows.
    pub(crate) fn draw(
        &self,
        (width, height): (usize, usize),
        text: &[String],
        headings: &[&str],
        rows: &[Vec<Cell>],
    ) -> io::Result<()> {
        let text = text.iter().map(|line| escaped(line).chars().take(width).collect::<String>());
        let shown = rows.len().min(height);
        let lines = text.chain(table_lines(headings, &rows[..shown], width)).take(height);
        let plain = anstream::AutoStream::choice(&io::stdout()) == anstream::ColorChoice::Never;
        let styled =
            |line: String| if plain { anstream::adapter::strip_str(&line).to_string() } else { line };
        // Each line is cleared behind its text, and what is below the last one too.
        let lines: Vec<_> = lines.map(|line| format!("{}\x1b[K", styled(line))).collect();
        bytes(format!("\x1b[H{}\x1b[J", lines.join("\r\n")).as_bytes())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        drop(bytes(b"\x1b[?7h\x1b[?25h\x1b[?1049l"));
    }
}

/// A remark beside the data, on standard error.
pub(crate) fn note(text: impl Display) -> io::Result<()> {
    let mut out = anstream::stderr().lock();
    writeln!(out, "{}", escaped(&text.to_string()))
}

/// A remark in a terminal that is raw, where a line does not begin at its left by itself.
pub(crate) fn raw_note(text: impl Display) -> io::Result<()> {
    error_bytes(format!("\r\n{}\r\n", escaped(&text.to_string())).as_bytes())
}

/// `error:`, and under it what to do and how to find out more, on standard error.
pub(crate) fn error(message: &str, hint: Option<&str>, more: Option<&str>) -> io::Result<()> {
    let mut out = anstream::stderr().lock();
    writeln!(out, "{} {}", "error:".red().bold(), escaped_lines(message))?;
    if let Some(hint) = hint {
        writeln!(out, "{} {}", "hint:".cyan().bold(), escaped_lines(hint))?;
    }
    if let Some(more) = more {
        writeln!(out, "{}", escaped_lines(more).dimmed())?;
    }
    Ok(())
}

/// What the parser says about a wrong command line, in its own colours, on standard error.
pub(crate) fn usage(error: &clap::Error) -> io::Result<()> {
    let mut out = anstream::stderr().lock();
    write!(out, "{}", error.render().ansi())
}

/// Help and version: what was asked for, so standard output.
pub(crate) fn help(text: &clap::Error) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    write!(out, "{}", text.render().ansi())?;
    out.flush()
}

/// Whether a person is there to read what is written to standard error.
pub(crate) fn is_watched() -> bool {
    io::stderr().is_terminal()
}

/// What a program on the far side may have changed in this terminal and did not change back: the other
/// screen, the mouse, bracketed paste, a hidden cursor, colours.
pub(crate) fn leave_screen() -> io::Result<()> {
    bytes(b"\x1b[?1047l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?25h\x1b[0m\r\n")
}

/// Something that takes its time. Seen on a terminal only, and gone when dropped.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn start(doing: &str) -> Self {
        let bar = if is_watched() {
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
        } else {
            ProgressBar::hidden()
        };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        bar.set_message(doing.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    /// Nothing to see, whoever watches.
    pub(crate) fn hidden() -> Self {
        Self(ProgressBar::hidden())
    }

    /// So many bytes of so many are done; without the second it is not known how many there are.
    pub(crate) fn bytes(&self, done: u64, of: Option<u64>) {
        if self.0.length() != of || self.0.position() == 0 {
            let template = match of {
                Some(_) => "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}",
                None => "{spinner} {msg} {binary_bytes} ({elapsed})",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                self.0.set_style(style);
            }
            if let Some(of) = of {
                self.0.set_length(of);
            }
        }
        self.0.set_position(done);
    }

    /// Takes it off the screen.
    pub(crate) fn end(&self) {
        self.0.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

/// Control characters as their escapes: `\n`, `\u{1b}`.
fn escaped(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() })
        .collect()
}

fn escaped_lines(text: &str) -> String {
    text.lines().map(escaped).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_of_others_do_not_reach_the_terminal() {
        assert_eq!(escaped("a\u{1b}[31mb\nc\u{9b}ä"), "a\\u{1b}[31mb\\nc\\u{9b}ä");
        assert_eq!(escaped_lines("one\ntwo\u{7}"), "one\ntwo\\u{7}");
    }
}
