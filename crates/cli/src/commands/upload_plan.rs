//! What an upload will do, decided from the command line and from what is on this host, before anything
//! is sent. Pure but for looking at the source.

use std::path::Path;

use nullspace_client::upload::archive::{Directory, EntryKind};
use nullspace_types::upload::{UploadConflict, UploadSource};
use serde::Serialize;

use super::upload::{Checksum, When};
use crate::failure::Failure;

/// From here on a file goes in parts.
pub(super) const DIRECT_MAX: u64 = 8 << 20;

/// What is given to upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SourceKind {
    File,
    Directory,
    Stdin,
}

/// How it travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Transport {
    /// In one request.
    Direct,
    /// In parts, each of which can be sent again.
    Resumable,
}

/// What the command line says about it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wishes {
    pub conflict: UploadConflict,
    pub resumable: When,
    pub checksum: Checksum,
    pub spool: When,
    pub resumes: bool,
}

impl SourceKind {
    pub(super) fn of(source: &str) -> Result<Self, Failure> {
        if source == "-" {
            return Ok(Self::Stdin);
        }
        let metadata = std::fs::metadata(source).map_err(Failure::io(format!("read {source}")))?;
        if metadata.is_dir() {
            return Ok(Self::Directory);
        }
        if metadata.is_file() {
            return Ok(Self::File);
        }
        Err(Failure::Usage {
            message: format!("{source} is neither a file nor a directory"),
            hint: Some("pipe what it gives, with - as the source".to_owned()),
        })
    }

    /// Where it goes if the command line does not say.
    pub(super) fn target(self, source: &str, destination: Option<&str>) -> Result<String, Failure> {
        let name = || {
            // `.` and `..` have a name only once they are resolved.
            let resolved = Path::new(source).canonicalize().map_err(Failure::io(format!("read {source}")))?;
            let given = Path::new(source).file_name().or(resolved.file_name()).and_then(|name| name.to_str());
            given.map(str::to_owned).ok_or_else(|| {
                Failure::usage(format!("{source} has no name that could be used; give a destination"))
            })
        };
        match (destination, self) {
            (Some(path), Self::File) if path.ends_with('/') => Ok(format!("{path}{}", name()?)),
            (Some(path), _) => Ok(path.to_owned()),
            (None, Self::Stdin) => Err(Failure::usage("standard input has no name; give a destination")),
            (None, _) => name(),
        }
    }

    /// Whether it is kept in a temporary file first.
    pub(super) fn is_spooled(self, wishes: &Wishes) -> Result<bool, Failure> {
        match (self, wishes.spool) {
            (Self::Directory, When::Never) => Err(Failure::usage(
                "--spool-to-disk never: a directory is packed into a temporary file first",
            )),
            (Self::Stdin, When::Never) if wishes.is_resumable() => {
                Err(Failure::usage("--spool-to-disk never: what is to be resumed must be kept meanwhile"))
            }
            (Self::Stdin, When::Auto) => Ok(wishes.resumable != When::Never),
            (_, When::Always) | (Self::Directory, When::Auto) => Ok(true),
            (_, When::Never) | (Self::File, When::Auto) => Ok(false),
        }
    }

    /// How a content of so many bytes travels.
    pub(super) fn transport(self, length: u64, wishes: &Wishes) -> Result<Transport, Failure> {
        let needs_parts = match self {
            Self::Directory => Some("a directory"),
            _ if wishes.resumes => Some("--resume"),
            _ if wishes.checksum == Checksum::Sha256 => Some("--checksum sha256"),
            _ if wishes.conflict != UploadConflict::Merge => Some("--conflict"),
            _ => None,
        };
        match (wishes.resumable, needs_parts) {
            (When::Never, Some(what)) => {
                Err(Failure::usage(format!("--resumable never: {what} needs a resumable upload")))
            }
            (When::Never, None) => Ok(Transport::Direct),
            (When::Always, _) | (When::Auto, Some(_)) => Ok(Transport::Resumable),
            (When::Auto, None) if length > DIRECT_MAX => Ok(Transport::Resumable),
            (When::Auto, None) => Ok(Transport::Direct),
        }
    }
}

impl Wishes {
    /// Whether nothing but a resumable upload will do.
    fn is_resumable(&self) -> bool {
        self.resumes
            || self.resumable == When::Always
            || self.checksum == Checksum::Sha256
            || self.conflict != UploadConflict::Merge
    }
}

/// What `--dry-run` answers.
#[derive(Debug, Serialize)]
pub(super) struct Plan {
    pub source_kind: SourceKind,
    pub target_path: String,
    pub transport: Transport,
    pub source_kind_detail: UploadSource,
    pub content_length: u64,
    pub source_bytes: u64,
    pub file_count: u64,
    pub spooled: bool,
    pub included_entry_count: u64,
    pub excluded_entry_count: u64,
    pub conflict: UploadConflict,
    pub manifest: Vec<PlanEntry>,
}

/// Something in the source.
#[derive(Debug, Serialize)]
pub(super) struct PlanEntry {
    pub path: String,
    pub kind: &'static str,
    pub included: bool,
    /// The pattern because of which it is left out.
    pub reason: Option<String>,
}

impl Plan {
    pub(super) fn of_file(source: &str, target_path: String, wishes: &Wishes) -> Result<Self, Failure> {
        let failed = Failure::io(format!("read {source}"));
        let length = std::fs::metadata(source).map_err(failed)?.len();
        let spooled = SourceKind::File.is_spooled(wishes)?;
        let path = Path::new(source).file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self {
            source_kind: SourceKind::File,
            target_path,
            transport: SourceKind::File.transport(length, wishes)?,
            source_kind_detail: if spooled {
                UploadSource::SpooledStream
            } else {
                UploadSource::RestartableFile
            },
            content_length: length,
            source_bytes: length,
            file_count: 1,
            spooled,
            included_entry_count: 1,
            excluded_entry_count: 0,
            conflict: wishes.conflict,
            manifest: vec![PlanEntry { path, kind: "file", included: true, reason: None }],
        })
    }

    pub(super) fn of_directory(
        directory: &Directory,
        target_path: String,
        wishes: &Wishes,
    ) -> Result<Self, Failure> {
        let manifest: Vec<_> = directory
            .entries()
            .iter()
            .map(|entry| PlanEntry {
                path: entry.path.clone(),
                kind: match entry.kind {
                    EntryKind::Directory => "directory",
                    EntryKind::File => "file",
                    EntryKind::Symlink { .. } => "symlink",
                    EntryKind::Special => "other",
                },
                included: entry.excluded_by.is_none(),
                reason: entry.excluded_by.clone(),
            })
            .collect();
        let included = manifest.iter().filter(|entry| entry.included).count() as u64;
        Ok(Self {
            source_kind: SourceKind::Directory,
            target_path,
            transport: SourceKind::Directory.transport(directory.archive_length(), wishes)?,
            source_kind_detail: UploadSource::DirectoryArchive,
            content_length: directory.archive_length(),
            source_bytes: directory.file_bytes(),
            file_count: directory.file_count(),
            spooled: SourceKind::Directory.is_spooled(wishes)?,
            included_entry_count: included,
            excluded_entry_count: manifest.len() as u64 - included,
            conflict: wishes.conflict,
            manifest,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Wishes = Wishes {
        conflict: UploadConflict::Merge,
        resumable: When::Auto,
        checksum: Checksum::Auto,
        spool: When::Auto,
        resumes: false,
    };

    #[test]
    fn small_files_go_at_once_and_whatever_needs_more_goes_in_parts() {
        let transport = |kind: SourceKind, length, wishes: Wishes| kind.transport(length, &wishes).ok();
        let never = Wishes { resumable: When::Never, ..PLAIN };
        let always = Wishes { resumable: When::Always, ..PLAIN };
        let checked = Wishes { checksum: Checksum::Sha256, ..PLAIN };
        let careful = Wishes { conflict: UploadConflict::Error, ..PLAIN };
        let (direct, parts) = (Some(Transport::Direct), Some(Transport::Resumable));
        assert_eq!(transport(SourceKind::File, DIRECT_MAX, PLAIN), direct);
        assert_eq!(transport(SourceKind::File, DIRECT_MAX + 1, PLAIN), parts);
        assert_eq!(transport(SourceKind::File, DIRECT_MAX + 1, never), direct);
        for wishes in [always, checked, careful, Wishes { resumes: true, ..PLAIN }] {
            assert_eq!(transport(SourceKind::File, 1, wishes), parts);
        }
        assert_eq!(transport(SourceKind::Directory, 1, PLAIN), parts);
        assert_eq!(transport(SourceKind::Directory, 1, never), None);
        assert_eq!(transport(SourceKind::File, 1, Wishes { resumable: When::Never, ..checked }), None);
    }

    #[test]
    fn standard_input_is_kept_first_unless_it_goes_at_once() {
        let spooled = |kind: SourceKind, wishes: Wishes| kind.is_spooled(&wishes).ok();
        let never = Wishes { spool: When::Never, ..PLAIN };
        assert_eq!(spooled(SourceKind::Stdin, PLAIN), Some(true));
        assert_eq!(spooled(SourceKind::Stdin, Wishes { resumable: When::Never, ..PLAIN }), Some(false));
        assert_eq!(spooled(SourceKind::Stdin, never), Some(false));
        assert_eq!(spooled(SourceKind::Stdin, Wishes { resumable: When::Always, ..never }), None);
        assert_eq!(spooled(SourceKind::File, PLAIN), Some(false));
        assert_eq!(spooled(SourceKind::File, Wishes { spool: When::Always, ..PLAIN }), Some(true));
        assert_eq!(spooled(SourceKind::Directory, PLAIN), Some(true));
        assert_eq!(spooled(SourceKind::Directory, never), None);
    }
}
