//! Which paths a file call may name.

use nullspace_types::{Error, Result};

use crate::path;

/// Deepest listing.
pub const DEPTH_MAX: u32 = 64;

/// Judges the path of a file call, which may be relative: to the sandbox's working directory, else to
/// the user's home, else to the work tree. Only the text is judged here; it goes on as it came.
pub fn validate_path(field: &str, given: &str, cwd: Option<&str>, user: Option<&str>) -> Result<()> {
    path::check_text(field, given)?;
    let absolute = match (given.starts_with('/'), cwd, user) {
        (true, _, _) => given.to_owned(),
        (false, Some(cwd), _) => format!("{cwd}/{given}"),
        // Where the home is, is known in the guest alone; no home is in the reserved tree.
        (false, None, Some(_)) => return Ok(()),
        (false, None, None) => format!("{}/{given}", path::WORK_TREE),
    };
    if path::is_reserved(&path::normalised(&absolute)) {
        return Err(path::reserved(field));
    }
    Ok(())
}

/// Judges the `depth` of a listing: absent and 0 mean the direct children.
pub fn depth(text: Option<&str>) -> Result<u32> {
    match text.map(str::parse::<u32>) {
        None => Ok(1),
        Some(Ok(depth)) if depth <= DEPTH_MAX => Ok(depth.max(1)),
        Some(Ok(_) | Err(_)) => Err(Error::invalid(format!(
            "depth must be between 0 and {DEPTH_MAX}, got {:?}",
            text.unwrap_or_default()
        ))),
    }
}

/// Judges permission bits in octal text, such as `644` or `0755`.
pub fn permissions(text: &str) -> Result<u32> {
    let octal = !text.is_empty() && text.len() <= 5 && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    match u32::from_str_radix(text, 8) {
        Ok(mode) if octal && mode <= 0o7777 => Ok(mode),
        Ok(_) | Err(_) => Err(Error::invalid(format!(
            "permissions must be an octal number between 0 and 7777, such as \"0644\", got {text:?}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserved_tree_is_refused_however_it_is_spelled() {
        for (given, cwd) in [
            ("/workspace/.nullspace/x", None),
            ("/workspace//a/../.nullspace", None),
            (".nullspace/x", None),
            ("../workspace/.nullspace", Some("/srv")),
        ] {
            assert!(validate_path("path", given, cwd, None).is_err(), "{given}");
        }
        for (given, user) in [("/workspace/.nullspace2", None), ("a/b", None), (".nullspace", Some("user"))] {
            assert!(validate_path("path", given, None, user).is_ok(), "{given}");
        }
        assert!(
            validate_path("old_path", "", None, None)
                .unwrap_err()
                .message
                .starts_with("old_path must not be empty")
        );
    }

    #[test]
    fn depth_and_permissions_have_bounds() {
        assert_eq!((depth(None), depth(Some("0")), depth(Some("3"))), (Ok(1), Ok(1), Ok(3)));
        assert!(depth(Some("65")).is_err() && depth(Some("-1")).is_err());
        assert_eq!((permissions("644"), permissions("0755")), (Ok(0o644), Ok(0o755)));
        for text in ["", "8", "10000", "+44", "0o644", "rwx"] {
            assert!(permissions(text).is_err(), "{text}");
        }
    }
}
