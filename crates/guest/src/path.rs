//! What a path given to the agent means.
//!
//! A path is absolute, or relative to the machine's directory, the user's home, or `/workspace`. It
//! is normalised as text: `..` never leaves the root, and means the parent by name, not that of a
//! symbolic link's target. The tree `/workspace/.nullspace` is the product's own and refused in any
//! spelling; through a symbolic link too, which is looked at only while that tree exists.

use std::path::{Component, Path, PathBuf};

use tonic::Status;

use crate::account::Account;

/// The directory of relative paths and of processes, unless something says otherwise.
pub const WORKSPACE: &str = "/workspace";

/// The product's own tree.
pub const RESERVED: &str = "/workspace/.nullspace";
const LONGEST: usize = 4095;

/// Where relative paths start: at the machine's directory, if it has one.
pub fn base<'a>(cwd: Option<&'a str>, owner: Option<&'a Account>) -> &'a str {
    cwd.or(owner.map(|owner| owner.home.as_str())).unwrap_or(WORKSPACE)
}

/// `path` as an absolute, normalised path, relative ones starting at `base`.
pub fn resolve(path: &str, base: &str) -> Result<PathBuf, Status> {
    if path.is_empty() {
        return Err(Status::invalid_argument("the path is empty"));
    }
    if path.len() > LONGEST {
        return Err(Status::invalid_argument(format!(
            "the path has {} bytes; at most {LONGEST}",
            path.len()
        )));
    }
    if path.contains('\0') {
        return Err(Status::invalid_argument("the path contains a NUL byte"));
    }
    let path = normalise(&Path::new("/").join(base).join(path));
    refuse_reserved(&path, &path)?;
    Ok(path)
}

fn normalise(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    out
}

/// Whether a normalised path lies in the product's own tree.
pub fn is_reserved(path: &Path) -> bool {
    path.starts_with(RESERVED)
}

fn refuse_reserved(path: &Path, shown: &Path) -> Result<(), Status> {
    if is_reserved(path) {
        return Err(Status::invalid_argument(format!(
            "{} is inside {RESERVED}, which is reserved",
            shown.display()
        )));
    }
    Ok(())
}

/// Refuses a path that leads into the reserved tree through a symbolic link. May block.
pub fn refuse_reserved_links(path: &Path) -> Result<(), Status> {
    if Path::new(RESERVED).symlink_metadata().is_err() {
        return Ok(());
    }
    // The longest part that exists decides: what does not exist yet has no links.
    for known in path.ancestors() {
        if let Ok(real) = known.canonicalize() {
            return refuse_reserved(&real, path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(path: &str) -> Result<String, tonic::Code> {
        resolve(path, "/base/dir").map(|p| p.to_str().unwrap().to_string()).map_err(|e| e.code())
    }

    #[test]
    fn paths_are_normalised_and_never_leave_the_root() {
        for (given, meant) in [
            ("/a/b", "/a/b"),
            ("a", "/base/dir/a"),
            (".", "/base/dir"),
            ("../../../../x", "/x"),
            ("/../..", "/"),
            ("//a/.//b/../c/", "/a/c"),
            ("/a b/ü", "/a b/ü"),
        ] {
            assert_eq!(resolved(given).as_deref(), Ok(meant), "{given}");
        }
    }

    #[test]
    fn the_reserved_tree_is_refused_in_any_spelling() {
        for path in [
            "/workspace/.nullspace",
            "/workspace/.nullspace/x",
            "/workspace/a/../.nullspace",
            "//workspace/./.nullspace/",
            "../../workspace/.nullspace",
        ] {
            assert_eq!(resolved(path), Err(tonic::Code::InvalidArgument), "{path}");
        }
        assert_eq!(resolved("/workspace/.nullspacer").as_deref(), Ok("/workspace/.nullspacer"));
    }

    #[test]
    fn empty_long_and_nul_paths_are_refused() {
        for path in ["", "a\0b", &"x".repeat(5000)] {
            assert_eq!(resolved(path), Err(tonic::Code::InvalidArgument));
        }
    }
}
