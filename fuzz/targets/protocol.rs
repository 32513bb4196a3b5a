//! Messages between node and guest, in both directions: bytes that are one stay the same message when they
//! are written and read again. The first byte chooses the kind.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nullspace_guest_proto as pb;
use prost::Message;

fn check<M: Message + Default + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let Ok(message) = M::decode(bytes) else { return };
    let written = message.encode_to_vec();
    let again = M::decode(written.as_slice()).expect("what was written can be read");
    // Equal as values, whatever the order of a map; or as bytes, for a number that is none.
    assert!(again == message || again.encode_to_vec() == written, "{message:?}\n{again:?}");
}

/// The kinds, numbered as they stand.
macro_rules! kinds {
    ($($kind:ident),* $(,)?) => {
        const KINDS: &[fn(&[u8])] = &[$(check::<pb::$kind>),*];
    };
}

// New ones come last, so that what was found before still means the same.
kinds![
    HelloRequest,
    AdoptRequest,
    RunRequest,
    AttachRequest,
    ReadLogRequest,
    KillProcessRequest,
    WriteStdinRequest,
    ReadFileRequest,
    WriteFileRequest,
    ListFilesRequest,
    PathRequest,
    RenameFileRequest,
    SetPermissionsRequest,
    FindInFilesRequest,
    SearchFilesRequest,
    ReplaceInFilesRequest,
    WatchFilesRequest,
    StartTerminalRequest,
    TerminalRequest,
    WriteTerminalRequest,
    ResizeTerminalRequest,
    CreateUploadRequest,
    UploadRequest,
    WriteUploadPartRequest,
    CompleteUploadRequest,
    HelloReply,
    AdoptReply,
    MetricsReply,
    RunEvent,
    LogChunk,
    ListProcessesReply,
    FileChunk,
    FileInfo,
    WriteFilesReply,
    FindInFilesReply,
    SearchFilesReply,
    ReplaceInFilesReply,
    WatchEvent,
    Terminal,
    TerminalEvent,
    ListTerminalsReply,
    Upload,
    CompleteUploadReply,
];

fuzz_target!(|data: &[u8]| {
    if let Some((kind, bytes)) = data.split_first()
        && let Some(check) = KINDS.get(usize::from(*kind))
    {
        check(bytes);
    }
});
