//! The job in QEMU that copies frozen layers into a running machine's top.
//!
//! There is one at a time. It is not dismissed by itself, so that how it ended can be asked for by whoever
//! comes, a server that was started again included. Deliberately absent: which layers there are, and what
//! is done when it has ended; that is the disk's.
//!
//! Source: QEMU, "Live Block Device Operations" (docs/interop/live-block-operations.rst).

use super::qmp::{self, Command, Dialogue, Job};
use crate::Error;

/// Its name.
const JOB: &str = "merge";
/// What the guest's own use of the disk can well do without.
const BYTES_PER_SECOND: u64 = 64 << 20;

/// Begins to copy into `top` what lies between it and `below`.
pub async fn begin(dialogue: &Dialogue, top: &str, below: &str) -> Result<(), Error> {
    let stream = qmp::Stream {
        job_id: JOB,
        device: top.to_owned(),
        base_node: below.to_owned(),
        // Nobody opens a layer by what its header says.
        backing_file: below.to_owned(),
        speed: BYTES_PER_SECOND,
        auto_dismiss: false,
    };
    dialogue.run(&stream).await.map(drop)
}

/// The job, if there is one.
pub async fn find(dialogue: &Dialogue) -> Result<Option<Job>, Error> {
    let jobs = dialogue.run(&qmp::QueryJobs {}).await?;
    Ok(jobs.into_iter().find(|job| job.id == JOB))
}

/// Has it end if it has not; it stops after the piece that it is copying. Answers how it ended, if there was
/// one.
pub async fn end(dialogue: &Dialogue) -> Result<Option<Job>, Error> {
    let mut changes = dialogue.job_changes();
    let job = find(dialogue).await?;
    if job.as_ref().is_none_or(Job::is_over) {
        return Ok(job);
    }
    match dialogue.run(&qmp::CancelJob { id: JOB }).await {
        // Refused if it has ended in this moment.
        Ok(_) | Err(Error::Refused { .. }) => {}
        Err(error) => return Err(error),
    }
    let ended = async {
        loop {
            let job = find(dialogue).await?;
            if job.as_ref().is_none_or(Job::is_over) {
                return Ok(job);
            }
            changes.changed().await.map_err(|_| gone())?;
        }
    };
    tokio::time::timeout(qmp::PATIENCE, ended)
        .await
        .unwrap_or_else(|_| Err(Error::Monitor("the merge of its disk layers does not end".into())))
}

/// Forgets a job that has ended; answers what came of it.
pub async fn dismiss(dialogue: &Dialogue, job: Job) -> Result<Result<(), Error>, Error> {
    dialogue.run(&qmp::DismissJob { id: JOB }).await?;
    Ok(job.error.map_or(Ok(()), |reason| Err(refused(reason))))
}

/// A merge that is not done, and why.
pub fn refused(reason: impl Into<String>) -> Error {
    Error::Refused { command: qmp::Stream::NAME, reason: reason.into() }
}

/// It ended in the middle.
pub fn gone() -> Error {
    Error::Monitor("it ended while its disk layers were merged".into())
}
