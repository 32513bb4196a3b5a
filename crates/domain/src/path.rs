//! Paths inside a sandbox, judged by their text alone. What a link inside the guest points to is the
//! guest's business: these rules keep users out of the runtime's own tree by mistake, they are no wall
//! against root in the guest.

use nullspace_types::{Error, Result};

/// The tree that the runtime keeps for itself.
pub const RESERVED_TREE: &str = "/workspace/.nullspace";
/// Where relative paths begin when the sandbox has no working directory of its own.
pub const WORK_TREE: &str = "/workspace";
/// Longest path, as in Linux, without the closing NUL.
pub const PATH_BYTES_MAX: usize = 4095;
/// Longest part of a path between two slashes, as in ext4.
pub const NAME_BYTES_MAX: usize = 255;

/// An absolute path without `.`, `..`, doubled and trailing slashes. `..` above the root stays there.
pub fn normalised(absolute: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in absolute.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Whether a normalised path is the reserved tree or lies in it.
pub fn is_reserved(normal: &str) -> bool {
    normal.strip_prefix(RESERVED_TREE).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Refuses what no path may be: empty, with a NUL, too long.
pub(crate) fn check_text(field: &str, path: &str) -> Result<()> {
    if path.is_empty() {
        return Err(Error::invalid(format!("{field} must not be empty")));
    }
    if path.contains('\0') {
        return Err(Error::invalid(format!("{field} must not contain a NUL character")));
    }
    if path.len() > PATH_BYTES_MAX {
        return Err(Error::invalid(format!(
            "{field} must be at most {PATH_BYTES_MAX} bytes long, got {}",
            path.len()
        )));
    }
    if let Some(part) = path.split('/').find(|part| part.len() > NAME_BYTES_MAX) {
        return Err(Error::invalid(format!(
            "each part of {field} must be at most {NAME_BYTES_MAX} bytes long, got one of {}",
            part.len()
        )));
    }
    Ok(())
}

/// The refusal of a path in the reserved tree.
pub(crate) fn reserved(field: &str) -> Error {
    Error::invalid(format!("{field} must not lie in {RESERVED_TREE}, which the runtime keeps for itself"))
}

/// A working directory: absolute, normalised, outside the reserved tree.
pub fn working_directory(field: &str, path: &str) -> Result<String> {
    check_text(field, path)?;
    if !path.starts_with('/') {
        return Err(Error::invalid(format!("{field} must be an absolute path, got {path:?}")));
    }
    let normal = normalised(path);
    if is_reserved(&normal) {
        return Err(reserved(field));
    }
    Ok(normal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_working_directory_is_absolute_and_normalised() {
        assert_eq!(working_directory("cwd", "/srv//app/./x/../").as_deref(), Ok("/srv/app"));
        assert_eq!(working_directory("cwd", "/../..").as_deref(), Ok("/"));
        for (path, says) in [
            ("", "cwd must not be empty"),
            ("srv/app", "cwd must be an absolute path"),
            ("/a\0b", "NUL"),
            ("/workspace/x/../.nullspace/run", RESERVED_TREE),
            ("/workspace/.nullspace", RESERVED_TREE),
        ] {
            let error = working_directory("cwd", path).unwrap_err();
            assert!(error.message.contains(says), "{path:?}: {}", error.message);
        }
        assert!(working_directory("cwd", "/workspace/.nullspaces").is_ok());
        assert!(working_directory("cwd", &"/a".repeat(4000)).unwrap_err().message.contains("4095"));
        assert!(
            working_directory("cwd", &format!("/{}", "a".repeat(256))).unwrap_err().message.contains("255")
        );
    }

    proptest! {
        #[test]
        fn a_normalised_path_is_absolute_has_no_dots_and_is_normal(path in "(/(\\.|\\.\\.|[a-z]{0,3})){0,8}/?") {
            let normal = normalised(&path);
            prop_assert!(normal.starts_with('/'));
            prop_assert!(normal.split('/').all(|part| part != "." && part != ".."));
            prop_assert_eq!(normalised(&normal), normal.clone());
        }
    }
}
