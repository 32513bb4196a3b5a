//! Files of fake machines: contents by the path that the caller gave, a directory by a path that ends in a
//! slash.

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use nullspace_node_api::FileBody;
use nullspace_types::file::{
    FileChange, FileInfo, FileMatch, FileRange, FileReplace, FileReplaced, FileType,
};
use nullspace_types::socket::FileEventKind;
use nullspace_types::{Code, Error, Result};

use super::FakeMachine;

pub(super) fn info(path: &str, content: &[u8], kind: FileType) -> FileInfo {
    FileInfo {
        name: path.rsplit('/').next().unwrap_or_default().to_owned(),
        path: path.to_owned(),
        is_dir: kind == FileType::Dir,
        size: content.len() as u64,
        kind,
        mode: "0644".into(),
        permissions: "0644".into(),
        owner: "root".into(),
        group: "root".into(),
        modified_time: Timestamp::UNIX_EPOCH,
        symlink_target: None,
    }
}

pub(super) fn no_file(path: &str) -> Error {
    Error::new(Code::FileNotFound, format!("{path} does not exist"))
}

/// The part of a file that was asked for.
pub(super) fn body(content: &[u8], range: FileRange) -> FileBody {
    let size = content.len() as u64;
    let (from, to) = match range {
        FileRange::Whole => (0, size),
        FileRange::From { offset, length } => {
            (offset.min(size), length.map_or(size, |length| size.min(offset.saturating_add(length))))
        }
        FileRange::Last(count) => (size.saturating_sub(count), size),
    };
    let part = Bytes::copy_from_slice(&content[from as usize..to.max(from) as usize]);
    FileBody { size, modified: Timestamp::UNIX_EPOCH, content: stream::iter([Ok(part)]).boxed() }
}

impl FakeMachine {
    pub(super) fn tell(&mut self, event: FileEventKind, path: &str) {
        self.changes.push(FileChange { event, name: String::new(), path: path.to_owned() });
    }

    /// Writes a file; what lies in the kernel's tree cannot be written.
    pub(super) fn write(&mut self, path: String, content: Vec<u8>) -> FileInfo {
        let info = info(&path, &content, FileType::File);
        if self.files.insert(path.clone(), content).is_none() {
            self.tell(FileEventKind::Create, &path);
        }
        self.tell(FileEventKind::Write, &path);
        info
    }

    pub(super) fn content(&self, path: &str) -> Result<Vec<u8>> {
        self.files.get(path).cloned().ok_or_else(|| no_file(path))
    }

    pub(super) fn find(&self, path: &str, pattern: &str) -> Vec<FileMatch> {
        let below = self.files.iter().filter(|(name, _)| name.starts_with(path));
        let lines = below.flat_map(|(name, content)| {
            let text = String::from_utf8_lossy(content).into_owned();
            let lines: Vec<_> = text.lines().map(str::to_owned).enumerate().collect();
            lines.into_iter().map(move |(number, line)| (name, number, line))
        });
        let matches = lines.filter(|(_, _, line)| line.contains(pattern));
        let found = |(name, number, content): (&String, usize, String)| FileMatch {
            file: name.clone(),
            line: number as u64 + 1,
            content,
        };
        matches.map(found).collect()
    }

    pub(super) fn replace(&mut self, request: &FileReplace) -> Result<FileReplaced> {
        let mut done = FileReplaced::default();
        for path in &request.files {
            self.content(path)?;
        }
        for path in &request.files {
            let Ok(text) = String::from_utf8(self.content(path)?) else {
                done.binary_files_skipped += 1;
                continue;
            };
            let count = text.matches(&request.pattern).count() as u64;
            done.replacements += count;
            if count == 0 {
                done.files_skipped += 1;
                continue;
            }
            done.files_modified += 1;
            if request.dry_run != Some(true) {
                self.write(path.clone(), text.replace(&request.pattern, &request.replacement).into_bytes());
            }
        }
        Ok(done)
    }
}
