//! The host-wide index of slots, shared by all servers of a host: a claim is a file
//! `/run/nullspace/slots/<index>` with the instance inside, made so that only one can make it.
//!
//! A claim is the first thing of a slot to be made and the last to be removed, so an index is never
//! used twice. Whoever makes or removes a slot holds the lock shared; a sweep of claims whose
//! namespace is gone (a reboot, a crash) holds it alone, so it never sees a slot half-made.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::PathBuf;

use fs_err as fs;

use crate::config::namespace_name;
use crate::error::{Doing, Error, Result};
use crate::namespace::Namespace;

/// Where claims stand.
const DIRECTORY: &str = "/run/nullspace/slots";
/// Beside them, as it is not one.
const LOCK: &str = "/run/nullspace/slots.lock";

/// Held while a slot is being made or removed.
#[derive(Debug)]
pub(crate) struct Shared(#[expect(dead_code, reason = "the lock goes with the file")] fs::File);

/// Takes the lock together with others who make or remove slots.
pub(crate) fn share() -> Result<Shared> {
    let file = lock_file()?;
    file.lock_shared().doing(|| format!("cannot lock {LOCK}"))?;
    Ok(Shared(file))
}

/// Claims the lowest index below `limit` that is free; `None` when there is none.
pub(crate) fn take(_lock: &Shared, instance: &str, limit: u32) -> Result<Option<u32>> {
    let taken: BTreeSet<u32> = all()?.into_iter().map(|(index, _)| index).collect();
    for index in (0..limit).filter(|index| !taken.contains(index)) {
        if make(instance, index)? {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

/// Claims that very index again if its claim is lost; whether it is this instance's now.
pub(crate) fn keep(_lock: &Shared, instance: &str, index: u32) -> Result<bool> {
    Ok(make(instance, index)? || owner(index)?.as_deref() == Some(instance))
}

/// Gives an index back.
pub(crate) fn give_back(_lock: &Shared, instance: &str, index: u32) -> Result<()> {
    // Another instance's claim is not ours to remove, whatever led here.
    if owner(index)?.as_deref() != Some(instance) {
        return Ok(());
    }
    remove(index)
}

/// The indexes that `instance` has.
pub(crate) fn of(instance: &str) -> Result<BTreeSet<u32>> {
    Ok(all()?.into_iter().filter(|(_, owner)| owner == instance).map(|(index, _)| index).collect())
}

/// Removes the claims, of whatever instance, that have no namespace.
pub(crate) fn sweep() -> Result<()> {
    let lock = lock_file()?;
    lock.lock().doing(|| format!("cannot lock {LOCK}"))?;
    for (index, owner) in all()? {
        let live = !owner.is_empty() && Namespace::open(&namespace_name(&owner, index))?.is_some();
        if !live {
            tracing::info!(index, owner, "removed the claim of a network slot that is gone");
            remove(index)?;
        }
    }
    Ok(())
}

fn lock_file() -> Result<fs::File> {
    fs::create_dir_all(DIRECTORY).doing(|| "cannot make the directory of claims".into())?;
    let mut options = fs::OpenOptions::new();
    options
        .write(true)
        .create(true)
        .truncate(false)
        .open(LOCK)
        .doing(|| "cannot open the lock of claims".into())
}

fn path(index: u32) -> PathBuf {
    PathBuf::from(DIRECTORY).join(index.to_string())
}

fn make(instance: &str, index: u32) -> Result<bool> {
    let mut file = match fs::File::create_new(path(index)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(Error::io("cannot claim a network slot", error)),
    };
    if let Err(error) = writeln!(file, "{instance}") {
        remove(index)?;
        return Err(Error::io("cannot claim a network slot", error));
    }
    Ok(true)
}

fn remove(index: u32) -> Result<()> {
    match fs::remove_file(path(index)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("cannot give a network slot back", error))
        }
        _ => Ok(()),
    }
}

fn owner(index: u32) -> Result<Option<String>> {
    match fs::read_to_string(path(index)) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("cannot read a claim", error)),
    }
}

/// Every claim with its owner. What is not named like one is not one.
fn all() -> Result<Vec<(u32, String)>> {
    let mut claims = Vec::new();
    for entry in fs::read_dir(DIRECTORY).doing(|| "cannot list claims".into())? {
        let name = entry.doing(|| "cannot list claims".into())?.file_name();
        let Some(index) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        claims.extend(owner(index)?.map(|owner| (index, owner)));
    }
    Ok(claims)
}
