//! What a terminal session may be asked to be.

use nullspace_types::sandbox::Envs;
use nullspace_types::terminal::{COLS_DEFAULT, ROWS_DEFAULT, SIDE_MAX};
use nullspace_types::{Error, Result};

use crate::limits::Limits;
use crate::{envs, path, process};

/// Most bytes that are typed at once.
pub const INPUT_BYTES_MAX: usize = 1024 * 1024;

/// A session as it was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TerminalRequest {
    /// Columns.
    pub cols: Option<u32>,
    /// Rows.
    pub rows: Option<u32>,
    /// Working directory.
    pub cwd: Option<String>,
    /// Over the sandbox's environment.
    pub envs: Option<Envs>,
    /// Whose.
    pub user: Option<String>,
}

/// A valid session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionSpec {
    /// Columns.
    pub cols: u32,
    /// Rows.
    pub rows: u32,
    /// Working directory, absolute and normalised.
    pub cwd: Option<String>,
    /// Over the sandbox's environment.
    pub envs: Envs,
    /// Whose.
    pub user: Option<String>,
}

/// Judges a size.
pub fn size(cols: u32, rows: u32) -> Result<()> {
    for (field, given) in [("cols", cols), ("rows", rows)] {
        if !(1..=SIDE_MAX).contains(&given) {
            return Err(Error::invalid(format!("{field} must be between 1 and {SIDE_MAX}, got {given}")));
        }
    }
    Ok(())
}

/// Judges a session.
pub fn validate(request: TerminalRequest, limits: &Limits) -> Result<SessionSpec> {
    let (cols, rows) = (request.cols.unwrap_or(COLS_DEFAULT), request.rows.unwrap_or(ROWS_DEFAULT));
    size(cols, rows)?;
    let envs = request.envs.unwrap_or_default();
    envs::check("envs", &envs, limits.envs_bytes_max)?;
    Ok(SessionSpec {
        cols,
        rows,
        cwd: request.cwd.map(|cwd| path::working_directory("cwd", &cwd)).transpose()?,
        envs,
        user: process::user(request.user)?,
    })
}

/// Judges what is typed.
pub fn input(data: &[u8]) -> Result<()> {
    if data.len() > INPUT_BYTES_MAX {
        return Err(Error::invalid(format!(
            "data must be at most {INPUT_BYTES_MAX} bytes, got {}",
            data.len()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_has_a_size_in_bounds() {
        let limits = Limits::default();
        let spec = validate(TerminalRequest::default(), &limits).unwrap();
        assert_eq!((spec.cols, spec.rows), (120, 30));
        let with = |cols, rows| TerminalRequest { cols: Some(cols), rows: Some(rows), ..Default::default() };
        assert!(validate(with(1000, 1), &limits).is_ok());
        for (request, says) in [
            (with(0, 1), "cols must be between 1 and 1000, got 0"),
            (with(80, 1001), "rows must be between 1 and 1000, got 1001"),
            (TerminalRequest { cwd: Some("x".into()), ..Default::default() }, "cwd must be an absolute path"),
            (TerminalRequest { user: Some("a:b".into()), ..Default::default() }, "user must be"),
        ] {
            let error = validate(request, &limits).unwrap_err();
            assert!(error.message.contains(says), "{error}");
        }
        assert!(input(&[0; INPUT_BYTES_MAX]).is_ok() && input(&[0; INPUT_BYTES_MAX + 1]).is_err());
    }
}
