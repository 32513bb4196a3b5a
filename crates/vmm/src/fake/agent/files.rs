//! A tree of files in memory.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use nullspace_guest_proto as proto;
use tonic::Status;

#[derive(Clone)]
struct Node {
    /// None for a directory.
    data: Option<Bytes>,
    mode: u32,
    owner: String,
    modified_ns: i64,
}

/// Everything by its absolute path.
pub struct Tree(BTreeMap<String, Node>);

impl Default for Tree {
    fn default() -> Self {
        let mut tree = Self(BTreeMap::new());
        for path in ["/", "/workspace", "/tmp", "/home", "/home/user"] {
            tree.0.insert(path.into(), Node::new(None, "root"));
        }
        tree
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

fn missing(path: &str) -> Status {
    Status::not_found(format!("{path} does not exist"))
}

impl Tree {
    pub fn read(&self, path: &str) -> Result<Bytes, Status> {
        match self.0.get(path).ok_or_else(|| missing(path))?.data.clone() {
            Some(data) => Ok(data),
            None => Err(Status::failed_precondition(format!("{path} is a directory"))),
        }
    }

    pub fn write(&mut self, path: &str, user: &str, data: Bytes) -> Result<proto::FileInfo, Status> {
        if self.0.get(path).is_some_and(|node| node.data.is_none()) {
            return Err(Status::failed_precondition(format!("{path} is a directory")));
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.make_directories(parent, user)?;
        }
        let mut node = Node::new(Some(data), if user.is_empty() { "root" } else { user });
        if let Some(before) = self.0.get(path) {
            node.mode = before.mode;
            if user.is_empty() {
                node.owner = before.owner.clone();
            }
        }
        let info = node.info(path);
        self.0.insert(path.into(), node);
        Ok(info)
    }

    pub fn make_directories(&mut self, path: &str, user: &str) -> Result<(), Status> {
        let mut at = String::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            at = format!("{at}/{part}");
            let node = self.0.entry(at.clone());
            let node = node.or_insert_with(|| Node::new(None, if user.is_empty() { "root" } else { user }));
            if node.data.is_some() {
                return Err(Status::failed_precondition(format!("{at} is not a directory")));
            }
        }
        Ok(())
    }

    pub fn info(&self, path: &str) -> Result<proto::FileInfo, Status> {
        self.0.get(path).map(|node| node.info(path)).ok_or_else(|| missing(path))
    }

    pub fn exists(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    pub fn list(&self, path: &str, depth: u32) -> Result<Vec<proto::FileInfo>, Status> {
        if self.info(path)?.r#type() != proto::FileType::Directory {
            return Err(Status::failed_precondition(format!("{path} is not a directory")));
        }
        let prefix = if path == "/" { "/".to_owned() } else { format!("{path}/") };
        let within = |below: &str| !below.is_empty() && below.split('/').count() <= depth.max(1) as usize;
        let below = self.0.iter().filter(|(name, _)| name.strip_prefix(&prefix).is_some_and(within));
        Ok(below.map(|(name, node)| node.info(name)).collect())
    }

    pub fn remove(&mut self, path: &str) -> Result<(), Status> {
        self.info(path)?;
        let prefix = format!("{path}/");
        self.0.retain(|name, _| name != path && !name.starts_with(&prefix));
        Ok(())
    }

    pub fn rename(&mut self, old: &str, new: &str) -> Result<proto::FileInfo, Status> {
        self.info(old)?;
        let prefix = format!("{old}/");
        let moved: Vec<String> =
            self.0.keys().filter(|name| *name == old || name.starts_with(&prefix)).cloned().collect();
        for name in moved {
            if let Some(node) = self.0.remove(&name) {
                self.0.insert(format!("{new}{}", &name[old.len()..]), node);
            }
        }
        self.info(new)
    }

    pub fn set_mode(&mut self, path: &str, mode: u32) -> Result<(), Status> {
        self.0.get_mut(path).ok_or_else(|| missing(path))?.mode = mode;
        Ok(())
    }
}
