//! Terminal sessions in a sandbox. The wire calls them `pty`.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::id::SessionId;

/// Columns of a terminal whose creator names none.
pub const COLS_DEFAULT: u32 = 120;
/// Rows of a terminal whose creator names none.
pub const ROWS_DEFAULT: u32 = 30;
/// Most columns or rows.
pub const SIDE_MAX: u32 = 1000;

/// A session that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct TerminalInfo {
    /// Its ID.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub session_id: SessionId,
    /// The process ID of its program in the sandbox.
    pub pid: u32,
    /// Columns.
    pub cols: u32,
    /// Rows.
    pub rows: u32,
}

/// A new size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct TerminalResize {
    /// Columns, 1 to 1,000.
    pub cols: u32,
    /// Rows, 1 to 1,000.
    pub rows: u32,
}

/// What a viewer of a terminal session sees. Order: one `Attached`, any number of `Output`, the first of
/// which draws the screen as it was, at most one `Exited`, and then the stream ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TerminalEvent {
    /// The session as it is.
    Attached(TerminalInfo),
    /// What its program writes.
    Output(Bytes),
    /// Its program has ended.
    Exited {
        /// Exit status.
        exit_code: i32,
    },
}
