//! TLS hellos of unknown origin: whatever the bytes are, a hello is read alike however its bytes come and
//! whatever follows it, its name is a name, and rustls sees no other one in it.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use nullspace_domain::network::normal_name;
use nullspace_egress::hello::read;
use rustls::server::Acceptor;

fuzz_target!(|bytes: &[u8]| {
    let Ok(Some(hello)) = read(bytes) else { return };
    let (exact, before) = (&bytes[..hello.length], &bytes[..hello.length - 1]);
    assert_eq!(read(exact), Ok(Some(hello.clone())));
    assert_eq!(read(before), Ok(None));
    if let Some(name) = &hello.name {
        assert_eq!(normal_name(name).as_ref(), Some(name));
    }

    let mut acceptor = Acceptor::default();
    let mut rest = Cursor::new(exact);
    while let Ok(1..) = acceptor.read_tls(&mut rest) {
        let Ok(accepted) = acceptor.accept() else { return };
        if let Some(accepted) = accepted {
            // It leaves out names that it would never verify.
            if let Some(theirs) = accepted.client_hello().server_name() {
                assert_eq!(normal_name(theirs), hello.name);
            }
            return;
        }
    }
});
