//! Which names and link targets an archive may have: pure rules over bytes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{Failure, Fault};

/// Bytes of one part of a path.
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes of a path, and of what a link points to.
pub const PATH_BYTES_MAX: usize = 4095;
/// Parts of a path.
pub const DEPTH_MAX: usize = 256;

/// The path of an entry, relative and normalised; empty for the directory itself, as in `./`.
pub fn entry_path(name: &[u8]) -> Result<PathBuf, Failure> {
    let shown = Path::new(OsStr::from_bytes(name));
    let refuse = |why: &str| Err(Failure::new(Fault::Path, shown, why));
    if name.is_empty() {
        return refuse("an entry has an empty path");
    }
    if name.len() > PATH_BYTES_MAX {
        return refuse(&format!("the path has {} bytes; at most {PATH_BYTES_MAX}", name.len()));
    }
    if name.contains(&0) {
        return refuse("the path contains a NUL byte");
    }
    if name[0] == b'/' {
        return refuse("the path is absolute");
    }
    let mut path = PathBuf::with_capacity(name.len());
    let mut depth = 0;
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return refuse("the path has a part .."),
            part if part.len() > NAME_BYTES_MAX => {
                return refuse(&format!("a name has {} bytes; at most {NAME_BYTES_MAX}", part.len()));
            }
            part => {
                path.push(OsStr::from_bytes(part));
                depth += 1;
            }
        }
    }
    if depth > DEPTH_MAX {
        return refuse(&format!("the path has {depth} parts; at most {DEPTH_MAX}"));
    }
    Ok(path)
}

/// How a link reaches its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By names alone, after going up. However other links stand in its way, they lead inside if they
    /// are themselves within these rules.
    Straight,
    /// It goes up behind a name. If that name is a link, its target's parent is meant, which only the
    /// whole tree tells.
    Winding,
}

/// Judges what the link at `link` points to, by its text alone.
pub fn link_target(link: &Path, target: &[u8]) -> Result<Way, Failure> {
    let refuse = |why: &str| Err(Failure::new(Fault::Link, link, why));
    if target.is_empty() {
        return refuse("the link points to nothing");
    }
    if target.len() > PATH_BYTES_MAX {
        return refuse(&format!("the link's target has {} bytes; at most {PATH_BYTES_MAX}", target.len()));
    }
    if target.contains(&0) {
        return refuse("the link's target contains a NUL byte");
    }
    if target[0] == b'/' {
        return refuse("the link is absolute");
    }
    let mut depth = link.components().count().saturating_sub(1);
    let mut way = Way::Straight;
    let mut named = false;
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if depth == 0 => return refuse("the link leads out of the directory"),
            b".." => {
                depth -= 1;
                if named {
                    way = Way::Winding;
                }
            }
            _ => {
                depth += 1;
                named = true;
            }
        }
    }
    Ok(way)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stays_in_the_directory_or_is_refused() {
        let long = "n".repeat(NAME_BYTES_MAX);
        let deep = vec!["d"; DEPTH_MAX].join("/");
        for (name, path) in [
            ("a/b", "a/b"),
            ("./a//./b/", "a/b"),
            ("./", ""),
            (".", ""),
            ("..a/b..", "..a/b.."),
            (long.as_str(), long.as_str()),
            (deep.as_str(), deep.as_str()),
        ] {
            assert_eq!(entry_path(name.as_bytes()).unwrap(), Path::new(path), "{name}");
        }
        let too_long = vec!["n".repeat(200); 21].join("/");
        for name in
            ["", "/", "/a", "..", "a/..", "a/../b", "../a", "a\0", &(long + "n"), &(deep + "/d"), &too_long]
        {
            assert!(matches!(entry_path(name.as_bytes()).unwrap_err().fault, Fault::Path), "{name:?}");
        }
    }

    #[test]
    fn a_link_stays_in_the_directory_by_name_or_is_refused() {
        for (link, target, way) in [
            ("l", "a", Way::Straight),
            ("l", ".", Way::Straight),
            ("a/b/l", "../../c/d", Way::Straight),
            ("a/l", "./../", Way::Straight),
            ("l", "a/..", Way::Winding),
            ("a/l", "../b/../c", Way::Winding),
        ] {
            assert_eq!(link_target(Path::new(link), target.as_bytes()).unwrap(), way, "{link} -> {target}");
        }
        for (link, target) in
            [("l", ".."), ("a/l", "../.."), ("a/l", "b/../../../c"), ("l", "/etc"), ("l", ""), ("l", "a\0b")]
        {
            let refused = link_target(Path::new(link), target.as_bytes()).unwrap_err();
            assert!(matches!(refused.fault, Fault::Link), "{link} -> {target}");
        }
    }
}
