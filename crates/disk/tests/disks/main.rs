//! Disks as QEMU and e2fsprogs make them, and broken ones. Says `SKIP` where a tool is not installed.

#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]

mod files;
mod hostile;
mod layers;
mod tools;
