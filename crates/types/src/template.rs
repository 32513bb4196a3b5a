//! Templates: what sandboxes are made from.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A template.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Template {
    /// Equals the name for built-in templates.
    pub id: String,
    /// What `template` in a create names.
    pub name: String,
    /// What it is, in a line.
    pub description: String,
    /// Whether it came with the server.
    pub builtin: bool,
    /// Root disk in MiB.
    pub disk_mb: u32,
    /// When its image was made.
    pub created_at: Option<Timestamp>,
}
