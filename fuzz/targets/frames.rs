//! Frames of a sandbox's socket: a text that is one stays the same frame when it is written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nullspace_types::socket::ClientFrame;

fuzz_target!(|text: &str| {
    let Ok(frame) = serde_json::from_str::<ClientFrame>(text) else { return };
    let written = serde_json::to_string(&frame).expect("a frame can be written");
    let again = serde_json::from_str::<ClientFrame>(&written);
    assert_eq!(again.expect("what was written can be read"), frame);
});
