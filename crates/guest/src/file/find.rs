//! Looking for lines in files, with the libraries that ripgrep is made of.
//!
//! One file at a time, on one thread: the machine has few processors, and they are not idle. A file
//! that fits into the buffer, as nearly all do, is read and searched whole; whether it is binary is
//! asked only when a line matches. What a file has is told when it has been searched, since a larger
//! one may turn out to be binary later.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use grep_regex::{RegexMatcher, RegexMatcherBuilder};
use grep_searcher::{BinaryDetection, Searcher, SearcherBuilder, Sink, SinkMatch};
use memchr::memchr;
use nix::dir::Type;
use nullspace_guest_proto as pb;
use tokio::sync::mpsc;
use tonic::{Code, Status};

use super::walk::Walk;
use super::{check_pattern, open_to_read, status};

/// Most matches of one search, and most bytes of their lines.
const MATCHES: u64 = 10_000;
const CONTENT_BYTES: usize = 8 << 20;
/// Shown of one line.
const LINE_BYTES: usize = 4096;
/// A file that is not longer is read at once.
const WHOLE_BYTES: usize = 256 << 10;
/// The longest line that is searched in a longer file.
const LONGEST_LINE: usize = 16 << 20;
/// Of a compiled pattern, and of what is made of it while it is used.
const COMPILED_BYTES: usize = 10 << 20;
/// Matches in one message, and bytes of them.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 64 << 10;

type Replies = mpsc::Sender<Result<pb::FindInFilesReply, Status>>;

/// A search that has not begun yet.
pub struct Find {
    place: Place,
    matcher: RegexMatcher,
    limit: u64,
}

enum Place {
    File(PathBuf),
    Tree(Walk),
}

impl Find {
    /// Prepares. `limit` 0: as much as there may be.
    pub fn open(path: &Path, pattern: &str, limit: u64) -> Result<Self, Status> {
        let matcher = compile(pattern)?;
        crate::path::refuse_reserved_links(path)?;
        let metadata = path.metadata().map_err(|error| status(&error, path))?;
        let place = if metadata.is_dir() {
            Place::Tree(Walk::search(path)?)
        } else if metadata.is_file() {
            Place::File(path.into())
        } else {
            return Err(Status::invalid_argument(format!(
                "{} is a pipe, a socket or a device; only files and directories can be searched",
                path.display()
            )));
        };
        let limit = if limit == 0 { MATCHES } else { limit.min(MATCHES) };
        Ok(Self { place, matcher, limit })
    }

    /// Tells the matches in order of path and line, until there are no more or nobody wants them.
    pub fn run(self, replies: &Replies) {
        let mut work = Work {
            matcher: self.matcher,
            searcher: SearcherBuilder::new()
                .line_number(true)
                .bom_sniffing(false)
                .heap_limit(Some(LONGEST_LINE))
                .build(),
            buffer: vec![0; WHOLE_BYTES],
            lines: Lines {
                held: Vec::new(),
                held_bytes: 0,
                room: self.limit as usize,
                content_room: CONTENT_BYTES,
                limited: false,
            },
            reply: pb::FindInFilesReply::default(),
            reply_bytes: 0,
            replies,
        };
        // Whoever has left misses neither the error nor the last matches.
        let _ = match work.search(self.place) {
            Ok(()) => {
                work.reply.limited = work.lines.limited;
                replies.blocking_send(Ok(work.reply))
            }
            Err(Ended::Unwanted) => Ok(()),
            Err(Ended::Failed(error)) => replies.blocking_send(Err(error)),
        };
    }
}

/// A regular expression for lines; what is none is taken literally.
fn compile(pattern: &str) -> Result<RegexMatcher, Status> {
    check_pattern(pattern)?;
    for (character, name) in [('\0', "a NUL byte"), ('\n', "a line end")] {
        if pattern.contains(character) {
            return Err(Status::invalid_argument(format!("pattern contains {name}; lines have none")));
        }
    }
    let mut builder = RegexMatcherBuilder::new();
    builder
        .multi_line(true)
        .line_terminator(Some(b'\n'))
        .size_limit(COMPILED_BYTES)
        .dfa_size_limit(COMPILED_BYTES);
    builder
        .build(pattern)
        .or_else(|_| builder.fixed_strings(true).build(pattern))
        .map_err(|error| Status::invalid_argument(format!("pattern cannot be used: {error}")))
}

/// Why a search ends before its time.
enum Ended {
    Unwanted,
    Failed(Status),
}

struct Work<'a> {
    matcher: RegexMatcher,
    searcher: Searcher,
    buffer: Vec<u8>,
    lines: Lines,
    reply: pb::FindInFilesReply,
    reply_bytes: usize,
    replies: &'a Replies,
}

impl Work<'_> {
    fn search(&mut self, place: Place) -> Result<(), Ended> {
        let walk = match place {
            Place::File(path) => {
                self.file(&path, 0).map_err(|error| Ended::Failed(status(&error, &path)))?;
                return self.tell(&path);
            }
            Place::Tree(walk) => walk,
        };
        for entry in walk {
            if self.replies.is_closed() {
                return Err(Ended::Unwanted);
            }
            match entry {
                Ok(entry) if entry.kind == Type::File => {
                    // One that cannot be read, or is gone, is passed over.
                    if self.file(&entry.path, libc::O_NOFOLLOW).is_err() {
                        self.lines.forget();
                    }
                    self.tell(&entry.path)?;
                }
                Ok(_) => {}
                // A directory that is too large must not look searched.
                Err(error) if error.code() == Code::ResourceExhausted => return Err(Ended::Failed(error)),
                Err(_) => {}
            }
            if self.lines.limited {
                break;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, flags: i32) -> io::Result<()> {
        let mut file = open_to_read(path, flags)?;
        let mut filled = 0;
        while filled < self.buffer.len() {
            match read(&mut file, &mut self.buffer[filled..])? {
                0 => {
                    let begun = &self.buffer[..filled];
                    self.searcher.set_binary_detection(BinaryDetection::none());
                    let taking = Taking { begun, lines: &mut self.lines };
                    return self.searcher.search_slice(&self.matcher, begun, taking);
                }
                len => filled += len,
            }
        }
        let content = Content { begun: &self.buffer, file, replies: self.replies };
        self.searcher.set_binary_detection(BinaryDetection::quit(0));
        let taking = Taking { begun: &self.buffer, lines: &mut self.lines };
        self.searcher.search_reader(&self.matcher, content, taking)
    }

    /// Tells what a file had.
    fn tell(&mut self, path: &Path) -> Result<(), Ended> {
        if self.lines.held.is_empty() {
            return Ok(());
        }
        let path = path.to_string_lossy();
        self.lines.room -= self.lines.held.len();
        self.lines.content_room -= std::mem::take(&mut self.lines.held_bytes);
        for (line, content) in self.lines.held.drain(..) {
            self.reply_bytes += path.len() + content.len();
            self.reply.matches.push(pb::FileMatch { path: path.clone().into_owned(), line, content });
            if self.reply.matches.len() == BATCH || self.reply_bytes >= BATCH_BYTES {
                self.reply_bytes = 0;
                let reply = std::mem::take(&mut self.reply);
                self.replies.blocking_send(Ok(reply)).map_err(|_| Ended::Unwanted)?;
            }
        }
        Ok(())
    }
}

/// A long file, of which a part has been read; it ends when nobody wants to know any more.
struct Content<'a> {
    begun: &'a [u8],
    file: File,
    replies: &'a Replies,
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.begun.is_empty() {
            return self.begun.read(buffer);
        }
        if self.replies.is_closed() {
            return Ok(0);
        }
        read(&mut self.file, buffer)
    }
}

/// Reads once. 0: there is no more now.
fn read(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A file that waits for news has no more for now.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            other => return other,
        }
    }
}

/// The lines of one file that match, and how much more may be taken.
struct Lines {
    held: Vec<(u64, String)>,
    held_bytes: usize,
    room: usize,
    content_room: usize,
    limited: bool,
}

impl Lines {
    fn forget(&mut self) {
        self.held.clear();
        self.held_bytes = 0;
    }
}

/// Takes the lines of a file that begins so, and perhaps is no longer.
struct Taking<'a> {
    begun: &'a [u8],
    lines: &'a mut Lines,
}

impl Sink for Taking<'_> {
    type Error = io::Error;

    fn matched(&mut self, _: &Searcher, found: &SinkMatch<'_>) -> io::Result<bool> {
        let lines = &mut *self.lines;
        if lines.held.is_empty() && memchr(0, self.begun).is_some() {
            return Ok(false);
        }
        let content = shown(found.bytes());
        if lines.held.len() == lines.room || lines.held_bytes + content.len() > lines.content_room {
            lines.limited = true;
            return Ok(false);
        }
        lines.held_bytes += content.len();
        lines.held.push((found.line_number().unwrap_or_default(), content));
        Ok(true)
    }

    fn binary_data(&mut self, _: &Searcher, _: u64) -> io::Result<bool> {
        self.lines.forget();
        Ok(false)
    }
}

/// A line as it is told: without its end, cut, and as text.
fn shown(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    // A character that the cut goes through is at most that much longer.
    let mut text = String::from_utf8_lossy(&line[..line.len().min(LINE_BYTES + 3)]).into_owned();
    text.truncate(text.floor_char_boundary(LINE_BYTES));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_told_without_its_end_as_text_and_cut_between_characters() {
        assert_eq!(shown(b"plain\r\n"), "plain");
        assert_eq!(shown(b"not \xff text\n"), "not \u{fffd} text");
        for before in 0..4 {
            let line = "x".repeat(LINE_BYTES - before) + "\u{1f600} and more";
            let text = shown(line.as_bytes());
            assert!(line.starts_with(&text) && text.len() > LINE_BYTES - 4 && text.len() <= LINE_BYTES);
        }
        assert_eq!(shown(&[0xff; 9000]).len(), LINE_BYTES / 3 * 3);
    }

    #[test]
    fn a_pattern_is_a_regular_expression_or_else_literal() {
        assert!(compile("a+b").is_ok() && compile("a(b").is_ok() && compile("[z-a]").is_ok());
        let long = "x".repeat(65537);
        for pattern in ["", "a\0b", "a\nb", &long] {
            let refused = compile(pattern).unwrap_err();
            assert!(refused.code() == Code::InvalidArgument && refused.message().starts_with("pattern "));
        }
    }
}
