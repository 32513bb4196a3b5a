//! Looking through the tree of files, and watching it.

use nullspace_guest_proto as proto;
use nullspace_guest_proto::watch_event::Kind;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tonic::Status;

use super::files::{Tree, inside};

/// Whether a name matches a glob that knows `*` alone.
fn matches(name: &str, glob: &str) -> bool {
    let Some((head, tail)) = glob.split_once('*') else { return name == glob };
    let Some(rest) = name.strip_prefix(head) else { return false };
    (0..=rest.len()).filter_map(|at| rest.get(at..)).any(|rest| matches(rest, tail))
}

/// The first so many, and whether there are more.
fn limited<T>(mut items: Vec<T>, limit: u64) -> (Vec<T>, bool) {
    let limit = if limit == 0 { usize::MAX } else { limit as usize };
    let more = items.len() > limit;
    items.truncate(limit);
    (items, more)
}

/// Lines that have the pattern in them: it is always taken literally here.
pub fn find(tree: &Tree, path: &str, pattern: &str, limit: u64) -> Result<proto::FindInFilesReply, Status> {
    tree.info(path)?;
    let mut found = Vec::new();
    for (name, data) in tree.below(path).filter_map(|(name, data)| Some((name, data?))) {
        let text = String::from_utf8_lossy(data);
        for (number, line) in text.lines().enumerate().filter(|(_, line)| line.contains(pattern)) {
            let (path, content) = (name.clone(), line.to_owned());
            found.push(proto::FileMatch { path, line: number as u64 + 1, content });
        }
    }
    let (matches, limited) = limited(found, limit);
    Ok(proto::FindInFilesReply { matches, limited })
}

/// Paths whose last part matches.
pub fn search(tree: &Tree, path: &str, glob: &str, limit: u64) -> Result<proto::SearchFilesReply, Status> {
    tree.info(path)?;
    let named = |path: &str| path.rsplit('/').next().is_some_and(|name| matches(name, glob));
    let below = tree.below(path).map(|(name, _)| name).filter(|name| *name != path && named(name));
    let (paths, limited) = limited(below.cloned().collect(), limit);
    Ok(proto::SearchFilesReply { paths, limited })
}

/// Replaces a text in files.
pub fn replace(
    tree: &mut Tree,
    paths: &[String],
    request: &proto::ReplaceInFilesRequest,
) -> Result<proto::ReplaceInFilesReply, Status> {
    let contents = paths.iter().map(|path| tree.read(path)).collect::<Result<Vec<_>, _>>()?;
    let mut reply = proto::ReplaceInFilesReply::default();
    for (path, content) in paths.iter().zip(contents) {
        let Ok(text) = std::str::from_utf8(&content) else {
            reply.binary_files_skipped += 1;
            continue;
        };
        let count = text.matches(&request.pattern).count() as u64;
        if count == 0 {
            reply.files_skipped += 1;
            continue;
        }
        reply.replacements += count;
        reply.files_modified += 1;
        if !request.dry_run {
            let changed = text.replace(&request.pattern, &request.replacement);
            tree.write(path, "", changed.into())?;
        }
    }
    Ok(reply)
}

/// Tells of changes at and below a path.
pub async fn watch(
    mut changes: Receiver<(Kind, String)>,
    (root, recursive): (String, bool),
    events: mpsc::Sender<Result<proto::WatchEvent, Status>>,
) {
    let event = |kind: Kind, name: &str, path: &str| {
        Ok(proto::WatchEvent { kind: kind.into(), name: name.into(), path: path.into() })
    };
    if events.send(event(Kind::Started, "", &root)).await.is_err() {
        return;
    }
    loop {
        let change = tokio::select! {
            change = changes.recv() => change,
            () = events.closed() => return,
        };
        let (told, gone) = match &change {
            Ok((kind, path)) => match inside(path, &root) {
                // Of a file that is watched, its own name; a directory's own changes are not told.
                Some("") if *kind == Kind::Remove => (event(Kind::Gone, "", path), true),
                Some("") => (event(*kind, path.rsplit('/').next().unwrap_or_default(), path), false),
                Some(name) if recursive || !name.contains('/') => (event(*kind, name, path), false),
                Some(_) | None => continue,
            },
            Err(RecvError::Lagged(_)) => (event(Kind::Overflow, "", &root), false),
            Err(RecvError::Closed) => return,
        };
        if events.send(told).await.is_err() || gone {
            return;
        }
    }
}
