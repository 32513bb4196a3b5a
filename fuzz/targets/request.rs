//! Heads of HTTP requests of unknown origin: whatever the bytes are, a head is read alike however its bytes come
//! and whatever follows it, its host is a name, and that name stands in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nullspace_domain::network::normal_name;
use nullspace_egress::request::read;

fuzz_target!(|bytes: &[u8]| {
    let Ok(Some(head)) = read(bytes) else { return };
    let end = bytes.windows(4).position(|part| part == b"\r\n\r\n").expect("a head has an end") + 4;
    assert_eq!(read(&bytes[..end]), Ok(Some(head.clone())));
    assert_eq!(read(&bytes[..end - 1]), Ok(None));
    let Some(name) = head.host else { return };
    assert_eq!(normal_name(&name).as_ref(), Some(&name));
    let text = bytes[..end].to_ascii_lowercase();
    assert!(text.windows(name.len()).any(|part| part == name.as_bytes()), "{name} is not in it");
});
