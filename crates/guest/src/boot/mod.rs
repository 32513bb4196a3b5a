//! From the kernel's first process to a machine that can serve.
//!
//! Two halves: the initial memory file system, whose only work is to find the disk and to make it the
//! root; and the root, where everything a program expects is mounted and set. Nothing is started: the
//! agent is the whole of the machine's system.

mod device_event;
pub mod disk;
pub mod identity;
mod initrd;
mod link;
pub use link::DEVICE as LINK_DEVICE;
mod root;
pub use root::CONTROL_GROUPS;

use std::io;

/// An error of one step, with the step's name.
fn step<T, E: Into<io::Error>>(name: &str, result: Result<T, E>) -> io::Result<T> {
    result.map_err(|error| {
        let error = error.into();
        io::Error::new(error.kind(), format!("{name}: {error}"))
    })
}

/// Does all of it. Returns the checkpoint's token, from the kernel's command line.
pub fn boot() -> io::Result<String> {
    initrd::enter_root()?;
    root::prepare()?;
    step("network", link::bring_up())?;
    let line = step("/proc/cmdline", std::fs::read_to_string("/proc/cmdline"))?;
    token(&line).ok_or_else(|| {
        io::Error::other(format!(
            "the kernel's command line has no {}",
            nullspace_guest_proto::TOKEN_PARAMETER
        ))
    })
}

fn token(line: &str) -> Option<String> {
    line.split_ascii_whitespace().find_map(|word| {
        let (name, value) = word.split_once('=')?;
        (name == nullspace_guest_proto::TOKEN_PARAMETER && !value.is_empty()).then(|| value.to_string())
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_token_is_found_among_other_parameters() {
        assert_eq!(
            super::token("console=ttyS0 quiet nullspace.token=a=b panic=-1\n").as_deref(),
            Some("a=b")
        );
        for line in ["", "nullspace.token", "nullspace.token=", "xnullspace.token=1"] {
            assert_eq!(super::token(line), None);
        }
    }
}
