//! Writing many files in one call.
//!
//! What a call holds between its messages: the file being written, and what need not be looked up for
//! every file. A file that fails is told as failed, and its data is passed over. A small file waits until
//! all of it is there: if it is a new one, it needs no temporary name.

use std::path::{Path, PathBuf};

use bytes::BytesMut;
use nullspace_guest_proto as pb;
use pb::write_file_request::Part;
use pb::write_files_reply::Outcome;
use tonic::Status;

use super::owner;
use super::write::{Writer, write_new};
use crate::account::{Account, Accounts};
use crate::path;

/// Most files of one call.
const FILES: usize = 10_000;
/// Bytes of a file that waits for its end.
const WAITING_BYTES: usize = 64 << 10;

/// Files being written. Dropped before `end`, the one under way leaves nothing.
pub struct Batch {
    /// The machine's directory, if it has one.
    cwd: Option<String>,
    accounts: Accounts,
    /// The user named last.
    owner: Option<(String, Result<Option<Account>, Status>)>,
    state: State,
    outcomes: Vec<pb::WriteFilesReply>,
}

enum State {
    /// Nothing has come yet.
    Begun,
    /// Small so far.
    Waiting(PathBuf, Option<Account>, BytesMut),
    Writing(Writer),
    /// The file has failed, and that has been told.
    Failed,
}

impl Batch {
    /// Relative paths start at `cwd`, if there is one.
    pub fn new(cwd: Option<String>) -> Self {
        Self { cwd, accounts: Accounts::load(), owner: None, state: State::Begun, outcomes: Vec::new() }
    }

    /// Takes the next message. Errors are those of the call.
    pub fn take(&mut self, part: Option<Part>) -> Result<(), Status> {
        match (part, &mut self.state) {
            (Some(Part::Start(start)), _) => {
                self.finish();
                if self.outcomes.len() == FILES {
                    return Err(Status::invalid_argument(format!(
                        "there are more than {FILES} files; write the rest in another call"
                    )));
                }
                match self.begin(&start) {
                    Ok((path, owner)) => self.state = State::Waiting(path, owner, BytesMut::new()),
                    Err(error) => self.fail(&error),
                }
                Ok(())
            }
            (Some(Part::Data(data)), State::Waiting(path, owner, waiting)) => {
                waiting.extend_from_slice(&data);
                if waiting.len() > WAITING_BYTES {
                    match written(path, owner.as_ref(), waiting) {
                        Ok(writer) => self.state = State::Writing(writer),
                        Err(error) => self.fail(&error),
                    }
                }
                Ok(())
            }
            (Some(Part::Data(data)), State::Writing(writer)) => {
                if let Err(error) = writer.append(&data) {
                    self.fail(&error);
                }
                Ok(())
            }
            (Some(Part::Data(_)), State::Failed) => Ok(()),
            (Some(Part::Data(_)), State::Begun) | (Some(Part::BulkBytes(_)) | None, _) => {
                Err(Status::invalid_argument("the messages of a file must be start, then data"))
            }
        }
    }

    /// Nothing more comes; gives what became of each file.
    pub fn end(mut self) -> Vec<pb::WriteFilesReply> {
        self.finish();
        self.outcomes
    }

    fn finish(&mut self) {
        let finished = match std::mem::replace(&mut self.state, State::Begun) {
            State::Begun | State::Failed => return,
            State::Waiting(path, owner, content) => self.write_whole(&path, owner.as_ref(), &content),
            State::Writing(writer) => writer.finish(&self.accounts),
        };
        match finished {
            Ok(info) => self.tell(Outcome::Written(info)),
            Err(error) => self.fail(&error),
        }
    }

    fn write_whole(
        &self,
        path: &Path,
        owner: Option<&Account>,
        content: &[u8],
    ) -> Result<pb::FileInfo, Status> {
        path::refuse_reserved_links(path)?;
        match write_new(path, owner, content, &self.accounts) {
            Ok(info) => Ok(info),
            // It is there, or its directory is not; or the long way says better what is wrong.
            Err(_) => written(path, owner, content)?.finish(&self.accounts),
        }
    }

    fn begin(&mut self, start: &pb::WriteFileStart) -> Result<(PathBuf, Option<Account>), Status> {
        let known = self.owner.take_if(|(user, _)| *user == start.user);
        let (_, owner) = self.owner.insert(known.unwrap_or_else(|| (start.user.clone(), owner(&start.user))));
        let owner = owner.as_ref().map_err(Clone::clone)?;
        let path = path::resolve(&start.path, path::base(self.cwd.as_deref(), owner.as_ref()))?;
        Ok((path, owner.clone()))
    }

    fn fail(&mut self, error: &Status) {
        self.state = State::Failed;
        self.tell(Outcome::Failed(pb::FileFailure {
            code: error.code().into(),
            message: error.message().into(),
        }));
    }

    fn tell(&mut self, outcome: Outcome) {
        self.outcomes.push(pb::WriteFilesReply { outcome: Some(outcome) });
    }
}

/// A file that is being written, with its first content.
fn written(path: &Path, owner: Option<&Account>, content: &[u8]) -> Result<Writer, Status> {
    let mut writer = Writer::create(path, owner)?;
    writer.append(content)?;
    Ok(writer)
}
