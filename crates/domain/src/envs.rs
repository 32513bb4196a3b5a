//! Environments: of a sandbox, and of one command over it.

use nullspace_types::sandbox::Envs;
use nullspace_types::{Error, Result};

/// Refuses an environment that no process could have, or one that is too large.
pub fn check(field: &str, envs: &Envs, bytes_max: u32) -> Result<()> {
    let mut bytes = 0usize;
    for (name, value) in envs {
        if name.is_empty() {
            return Err(Error::invalid(format!("{field}: a variable's name must not be empty")));
        }
        if name.contains('=') || name.contains('\0') {
            return Err(Error::invalid(format!("{field}: the name {name:?} must not contain '=' or NUL")));
        }
        if value.contains('\0') {
            return Err(Error::invalid(format!("{field}: the value of {name:?} must not contain NUL")));
        }
        bytes += name.len() + value.len();
    }
    if bytes > bytes_max as usize {
        return Err(Error::invalid(format!(
            "{field} must be at most {bytes_max} bytes in all, names and values together, got {bytes}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, value: &str) -> Envs {
        Envs::from([(name.to_owned(), value.to_owned())])
    }

    #[test]
    fn impossible_names_and_values_and_large_environments_are_refused() {
        assert!(check("envs", &one("PATH", "a=b"), 100).is_ok());
        for (envs, says) in [
            (one("", "x"), "envs: a variable's name must not be empty"),
            (one("A=B", "x"), "\"A=B\" must not contain '='"),
            (one("A", "x\0"), "the value of \"A\" must not contain NUL"),
            (
                one("A", &"x".repeat(100)),
                "envs must be at most 100 bytes in all, names and values together, got 101",
            ),
        ] {
            let error = check("envs", &envs, 100).unwrap_err();
            assert!(error.message.contains(says), "{}", error.message);
        }
    }
}
