//! Writing many files in one call.
//!
//! What a call holds between its messages: the file being written, and what need not be looked up for
//! every file. A file that fails is told as failed, and its data is passed over.

use nullspace_guest_proto as pb;
use pb::write_file_request::Part;
use pb::write_files_reply::Outcome;
use tonic::Status;

use super::owner;
use super::write::Writer;
use crate::account::{Account, Accounts};
use crate::path;

/// Most files of one call.
const FILES: usize = 10_000;

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
                match self.create(&start) {
                    Ok(writer) => self.state = State::Writing(writer),
                    Err(error) => self.fail(&error),
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
        if let State::Writing(writer) = std::mem::replace(&mut self.state, State::Begun) {
            match writer.finish(&self.accounts) {
                Ok(info) => self.tell(Outcome::Written(info)),
                Err(error) => self.fail(&error),
            }
        }
    }

    fn create(&mut self, start: &pb::WriteFileStart) -> Result<Writer, Status> {
        let known = self.owner.take_if(|(user, _)| *user == start.user);
        let (_, owner) = self.owner.insert(known.unwrap_or_else(|| (start.user.clone(), owner(&start.user))));
        let owner = owner.as_ref().map_err(Clone::clone)?.as_ref();
        Writer::create(&path::resolve(&start.path, path::base(self.cwd.as_deref(), owner))?, owner)
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
