//! Archives of unknown origin: whatever the bytes are, nothing is made outside of the directory, no link in
//! it leads out, and what is counted is what is there.
#![no_main]

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use libfuzzer_sys::fuzz_target;
use nullspace_guest::archive::{Rules, Unpacked, unpack};

fuzz_target!(|archive: &[u8]| {
    // In memory, where there is such a file system.
    let shared = Path::new("/dev/shm");
    let place = if shared.is_dir() { shared.into() } else { std::env::temp_dir() };
    let outer = tempfile::tempdir_in(place).expect("a directory can be made");
    let root = outer.path().join("root");
    fs::create_dir(&root).expect("a directory can be made");
    let open = File::open(&root).expect("it can be opened");
    let stop = AtomicBool::new(false);
    let reserved = |path: &Path| path.starts_with("reserved");
    let bytes_max = archive.len() as u64;
    let rules = Rules { owner: None, bytes_max, stop: &stop, reserved: &reserved };
    let outcome = unpack(archive, open.as_fd(), &rules);

    assert_eq!(fs::read_dir(outer.path()).expect("it is there").count(), 1, "something is outside");
    assert!(!root.join("reserved").exists(), "a reserved path was made");
    let mut found = Unpacked::default();
    look(&root, &root, outcome.is_ok(), &mut found);
    match outcome {
        Ok(made) => assert_eq!(made, found),
        Err(failure) => assert!(!failure.to_string().is_empty()),
    }
});

/// `finished`: the archive was found good, so its links must be.
fn look(root: &Path, directory: &Path, finished: bool, found: &mut Unpacked) {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).expect("it is ours");
    for entry in fs::read_dir(directory).expect("it can be read") {
        let path = entry.expect("it can be read").path();
        let metadata = path.symlink_metadata().expect("it is there");
        assert_eq!(metadata.permissions().mode() & 0o6000, 0, "{} is set-ID", path.display());
        if metadata.is_dir() {
            look(root, &path, finished, found);
        } else if metadata.is_symlink() {
            // One that leads to nothing leads nowhere.
            let end = path.canonicalize().ok();
            let inside = end.as_ref().is_none_or(|end| end.starts_with(root));
            assert!(inside || !finished, "{} leads to {end:?}", path.display());
        } else {
            assert!(metadata.is_file(), "{} is neither file, directory nor link", path.display());
            found.files += 1;
            found.bytes += metadata.len();
        }
    }
}
