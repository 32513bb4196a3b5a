//! What a file call may say: which paths, and how much.

use nullspace_types::file::FileReplace;
use nullspace_types::{Error, Result};

use crate::path;

/// Deepest listing.
pub const DEPTH_MAX: u32 = 64;
/// Most bytes of what is looked for, and of what shall stand in its place.
pub const PATTERN_BYTES_MAX: usize = 64 * 1024;
/// Most matches of one search in files.
pub const FIND_MAX: u64 = 10_000;
/// Most paths of one search for names.
pub const SEARCH_MAX: u64 = 100_000;
/// Most files of one replacement or batch.
pub const FILES_MAX: usize = 10_000;
/// How long a signed URL works if nothing is said, in seconds.
pub const SIGN_SECS_DEFAULT: u64 = 900;
/// How long a signed URL may work, in seconds.
pub const SIGN_SECS_MAX: u64 = 86_400;

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

fn bounded(field: &str, text: &str) -> Result<()> {
    if text.len() > PATTERN_BYTES_MAX {
        return Err(Error::invalid(format!(
            "{field} must be at most {PATTERN_BYTES_MAX} bytes long, got {}",
            text.len()
        )));
    }
    Ok(())
}

/// Judges what is looked for.
pub fn pattern(text: &str) -> Result<()> {
    if text.is_empty() {
        return Err(Error::invalid("pattern must not be empty"));
    }
    if text.contains('\0') {
        return Err(Error::invalid("pattern must not contain a NUL character"));
    }
    bounded("pattern", text)
}

fn limit(given: Option<u64>, most: u64) -> Result<u64> {
    match given.unwrap_or(most) {
        limit if (1..=most).contains(&limit) => Ok(limit),
        limit => Err(Error::invalid(format!("limit must be between 1 and {most}, got {limit}"))),
    }
}

/// Judges how many matches a search in files may answer.
pub fn find_limit(given: Option<u64>) -> Result<u64> {
    limit(given, FIND_MAX)
}

/// Judges how many paths a search for names may answer.
pub fn search_limit(given: Option<u64>) -> Result<u64> {
    limit(given, SEARCH_MAX)
}

/// Judges a replacement, but for its paths and its user.
pub fn replacement(request: &FileReplace) -> Result<()> {
    if !(1..=FILES_MAX).contains(&request.files.len()) {
        return Err(Error::invalid(format!(
            "files must name between 1 and {FILES_MAX} files, got {}",
            request.files.len()
        )));
    }
    pattern(&request.pattern)?;
    bounded("replacement", &request.replacement)
}

/// Judges for how many seconds a signed URL shall work.
pub fn sign_secs(given: Option<u64>) -> Result<u64> {
    match given.unwrap_or(SIGN_SECS_DEFAULT) {
        secs if (1..=SIGN_SECS_MAX).contains(&secs) => Ok(secs),
        secs => {
            let message = format!("expires_in_secs must be between 1 and {SIGN_SECS_MAX}, got {secs}");
            Err(Error::invalid(message))
        }
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

    #[test]
    fn searches_replacements_and_signatures_have_bounds() {
        assert_eq!((find_limit(None), find_limit(Some(7))), (Ok(FIND_MAX), Ok(7)));
        assert_eq!((search_limit(None), sign_secs(None)), (Ok(SEARCH_MAX), Ok(900)));
        let replace = |files: usize, pattern: &str, with: &str| {
            replacement(&FileReplace {
                files: vec!["/a".into(); files],
                pattern: pattern.into(),
                replacement: with.into(),
                user: None,
                dry_run: None,
            })
        };
        assert!(replace(FILES_MAX, "x", "").is_ok());
        for (refused, says) in [
            (find_limit(Some(0)).map(drop), "limit must be between 1 and 10000, got 0"),
            (search_limit(Some(100_001)).map(drop), "limit must be between 1 and 100000, got 100001"),
            (sign_secs(Some(0)).map(drop), "expires_in_secs must be between 1 and 86400, got 0"),
            (sign_secs(Some(86_401)).map(drop), "got 86401"),
            (pattern(""), "pattern must not be empty"),
            (pattern("a\0"), "NUL"),
            (pattern(&"x".repeat(65_537)), "pattern must be at most 65536 bytes long, got 65537"),
            (replace(0, "x", ""), "files must name between 1 and 10000 files, got 0"),
            (replace(FILES_MAX + 1, "x", ""), "got 10001"),
            (replace(1, "", ""), "pattern must not be empty"),
            (replace(1, "x", &"x".repeat(65_537)), "replacement must be at most 65536 bytes"),
        ] {
            let error = refused.unwrap_err();
            assert!(error.message.contains(says), "{error}");
        }
    }
}
