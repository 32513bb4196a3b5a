//! A tree of files in memory.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use nullspace_guest_proto as proto;
use nullspace_guest_proto::watch_event::Kind;
use tokio::sync::broadcast;
use tonic::Status;

/// Changes that a slow watcher may lag behind.
const CHANGES: usize = 1024;

#[derive(Clone)]
struct Node {
    /// None for a directory.
    data: Option<Bytes>,
    mode: u32,
    owner: String,
    modified_ns: i64,
}

/// Everything by its absolute path, and who is told of changes.
pub struct Tree {
    nodes: BTreeMap<String, Node>,
    changes: broadcast::Sender<(Kind, String)>,
}

impl Default for Tree {
    fn default() -> Self {
        let paths = ["/", "/workspace", "/tmp", "/home", "/home/user"];
        let nodes = paths.map(|path| (path.to_owned(), Node::new(None, "root")));
        Self { nodes: BTreeMap::from(nodes), changes: broadcast::channel(CHANGES).0 }
    }
}

impl Node {
    fn new(data: Option<Bytes>, owner: &str) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mode = if data.is_some() { 0o644 } else { 0o755 };
        Self {
            data,
            mode,
            owner: owner.into(),
            modified_ns: i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        }
    }

    fn info(&self, path: &str) -> proto::FileInfo {
        let kind = if self.data.is_some() { proto::FileType::File } else { proto::FileType::Directory };
        proto::FileInfo {
            path: path.into(),
            size: self.data.as_ref().map_or(0, |data| data.len() as u64),
            r#type: kind.into(),
            mode: self.mode,
            owner: self.owner.clone(),
            group: self.owner.clone(),
            modified_ns: self.modified_ns,
            symlink_target: String::new(),
        }
    }
}

/// An absolute path with no `.`, `..` or empty part, from one that may be relative to `base`.
pub fn resolve(path: &str, base: &str) -> Result<String, Status> {
    if path.is_empty() || path.contains('\0') {
        return Err(Status::invalid_argument("the path is empty or has a zero byte"));
    }
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{base}/{path}") };
    let mut parts = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let resolved = format!("/{}", parts.join("/"));
    if resolved == "/workspace/.nullspace" || resolved.starts_with("/workspace/.nullspace/") {
        return Err(Status::invalid_argument(format!("{resolved} is reserved")));
    }
    Ok(resolved)
}

/// The rest of a path that is `root` or lies in it; empty for `root` itself.
pub fn inside<'a>(path: &'a str, root: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(root.trim_end_matches('/'))?;
    if rest.is_empty() || rest == "/" { Some("") } else { rest.strip_prefix('/') }
}

fn missing(path: &str) -> Status {
    Status::not_found(format!("{path} does not exist"))
}

impl Tree {
    /// The same files; nobody is told of what happens to them.
    pub fn copy(&self) -> Self {
        Self { nodes: self.nodes.clone(), changes: broadcast::channel(CHANGES).0 }
    }

    /// Changes from now on.
    pub fn watch(&self) -> broadcast::Receiver<(Kind, String)> {
        self.changes.subscribe()
    }

    fn tell(&self, kind: Kind, path: &str) {
        // Nobody may be watching.
        let _ = self.changes.send((kind, path.to_owned()));
    }

    /// The files at and below a path.
    pub fn below(&self, path: &str) -> impl Iterator<Item = (&String, Option<&Bytes>)> {
        let all = self.nodes.iter().map(|(name, node)| (name, node.data.as_ref()));
        all.filter(move |(name, _)| inside(name, path).is_some())
    }

    pub fn read(&self, path: &str) -> Result<Bytes, Status> {
        match self.nodes.get(path).ok_or_else(|| missing(path))?.data.clone() {
            Some(data) => Ok(data),
            None => Err(Status::failed_precondition(format!("{path} is a directory"))),
        }
    }

    pub fn write(&mut self, path: &str, user: &str, data: Bytes) -> Result<proto::FileInfo, Status> {
        if self.nodes.get(path).is_some_and(|node| node.data.is_none()) {
            return Err(Status::failed_precondition(format!("{path} is a directory")));
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.make_directories(parent, user)?;
        }
        let mut node = Node::new(Some(data), if user.is_empty() { "root" } else { user });
        if let Some(before) = self.nodes.get(path) {
            node.mode = before.mode;
            if user.is_empty() {
                node.owner = before.owner.clone();
            }
        }
        let info = node.info(path);
        if self.nodes.insert(path.into(), node).is_none() {
            self.tell(Kind::Create, path);
        }
        self.tell(Kind::Write, path);
        Ok(info)
    }

    pub fn make_directories(&mut self, path: &str, user: &str) -> Result<(), Status> {
        let mut at = String::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            at = format!("{at}/{part}");
            match self.nodes.get(&at) {
                Some(node) if node.data.is_some() => {
                    return Err(Status::failed_precondition(format!("{at} is not a directory")));
                }
                Some(_) => {}
                None => {
                    let node = Node::new(None, if user.is_empty() { "root" } else { user });
                    self.nodes.insert(at.clone(), node);
                    self.tell(Kind::Create, &at);
                }
            }
        }
        Ok(())
    }

    pub fn info(&self, path: &str) -> Result<proto::FileInfo, Status> {
        self.nodes.get(path).map(|node| node.info(path)).ok_or_else(|| missing(path))
    }

    pub fn exists(&self, path: &str) -> bool {
        self.nodes.contains_key(path)
    }

    pub fn list(&self, path: &str, depth: u32) -> Result<Vec<proto::FileInfo>, Status> {
        if self.info(path)?.r#type() != proto::FileType::Directory {
            return Err(Status::failed_precondition(format!("{path} is not a directory")));
        }
        let within = |below: &str| !below.is_empty() && below.split('/').count() <= depth.max(1) as usize;
        let below = self.nodes.iter().filter(|(name, _)| inside(name, path).is_some_and(within));
        Ok(below.map(|(name, node)| node.info(name)).collect())
    }

    pub fn remove(&mut self, path: &str) -> Result<(), Status> {
        self.info(path)?;
        let prefix = format!("{path}/");
        self.nodes.retain(|name, _| name != path && !name.starts_with(&prefix));
        self.tell(Kind::Remove, path);
        Ok(())
    }

    pub fn rename(&mut self, old: &str, new: &str) -> Result<proto::FileInfo, Status> {
        self.info(old)?;
        let prefix = format!("{old}/");
        let moved: Vec<String> =
            self.nodes.keys().filter(|name| *name == old || name.starts_with(&prefix)).cloned().collect();
        for name in moved {
            if let Some(node) = self.nodes.remove(&name) {
                self.nodes.insert(format!("{new}{}", &name[old.len()..]), node);
            }
        }
        self.tell(Kind::Rename, old);
        self.tell(Kind::Rename, new);
        self.info(new)
    }

    pub fn set_mode(&mut self, path: &str, mode: u32) -> Result<(), Status> {
        self.nodes.get_mut(path).ok_or_else(|| missing(path))?.mode = mode;
        self.tell(Kind::Chmod, path);
        Ok(())
    }
}
