//! The bounds that an operator may set, with their defaults. Every bound that a caller can run into is
//! named here once and quoted in the message that refuses the value.

use serde::{Deserialize, Serialize};

/// Bounds on what a caller may ask for: the `[limits]` section of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Most virtual processors of one sandbox.
    pub vcpus_max: u32,
    /// Least memory of one sandbox, in MiB.
    pub memory_mb_min: u32,
    /// Most memory of one sandbox, in MiB.
    pub memory_mb_max: u32,
    /// Least root disk that can be asked for, in MiB.
    pub disk_mb_min: u32,
    /// Most root disk that can be asked for, in MiB.
    pub disk_mb_max: u32,
    /// Longest lifetime window of a sandbox, in milliseconds.
    pub timeout_ms_max: u64,
    /// The window of a sandbox whose creator names none, in milliseconds.
    pub timeout_ms_default: u64,
    /// Most bytes of an environment, names and values together.
    pub envs_bytes_max: u32,
    /// Most bytes of a sandbox's metadata as JSON.
    pub metadata_bytes_max: u32,
    /// Longest time that a foreground command may ask for, in seconds.
    pub exec_timeout_secs_max: u32,
    /// The time of a foreground command that names none, in seconds.
    pub exec_timeout_secs_default: u32,
    /// Most bytes of a command with its arguments.
    pub command_bytes_max: u32,
    /// How long a machine may take to be made before the create is given up, in seconds.
    pub create_secs_max: u32,
    /// Most bytes of one resumable upload.
    pub upload_bytes_max: u64,
    /// Bytes of every part of a resumable upload but its last.
    pub upload_part_bytes: u64,
    /// Parts of one resumable upload that its client should send at once.
    pub upload_concurrency_max: u32,
    /// Most bytes that the unfinished uploads of one sandbox may keep of its disk, which is the real bound.
    pub upload_staging_bytes_max: u64,
    /// How long an upload that is not completed is kept, in seconds.
    pub upload_secs_max: u32,
    /// How long a preview URL is good whose creator says nothing, in seconds; counts as 60 to 86400.
    pub preview_secs_default: u32,
    /// How long a request to a preview waits for its sandbox to wake, in seconds.
    pub wake_secs_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            vcpus_max: 8,
            memory_mb_min: 256,
            memory_mb_max: 65_536,
            disk_mb_min: 512,
            disk_mb_max: 131_072,
            timeout_ms_max: 30 * 24 * 60 * 60 * 1000,
            timeout_ms_default: 300_000,
            envs_bytes_max: 128 * 1024,
            metadata_bytes_max: 64 * 1024,
            exec_timeout_secs_max: 86_400,
            exec_timeout_secs_default: 30,
            command_bytes_max: 1024 * 1024,
            create_secs_max: 110,
            upload_bytes_max: 64 << 30,
            upload_part_bytes: 8 << 20,
            upload_concurrency_max: 4,
            upload_staging_bytes_max: 64 << 30,
            upload_secs_max: 86_400,
            preview_secs_default: 900,
            wake_secs_max: 30,
        }
    }
}

/// Processors of a sandbox whose creator names none.
pub const VCPUS_DEFAULT: u32 = 1;
/// Memory in MiB of a sandbox whose creator names none.
pub const MEMORY_MB_DEFAULT: u32 = 256;
/// The template of a sandbox whose creator names none.
pub const TEMPLATE_DEFAULT: &str = "base";

/// Most parts of one upload: what a machine keeps count of.
pub const UPLOAD_PARTS_MAX: u64 = 100_000;
