//! The hidden `jail` command: builds the jail around itself and becomes the program.
//!
//! Single-threaded from start to end. Standard input is a socket that brings the program's
//! descriptors and the [`Spec`], standard output answers `pid N` or what failed, standard error is
//! the log.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, Gid, Uid};

use crate::Spec;

/// A step that failed, named for the log of whoever asked.
type Step<T = ()> = Result<T, String>;

/// The first number of the program's descriptors.
const FIRST: i32 = 3;
/// The most descriptors that a program can be given.
const MOST: usize = 16;

/// The body of the hidden command.
pub fn main() -> ExitCode {
    let answer = enter();
    let (text, code) = match &answer {
        Ok(pid) => (format!("pid {pid}\n"), ExitCode::SUCCESS),
        Err(step) => (format!("{step}\n"), ExitCode::FAILURE),
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

fn enter() -> Step<i32> {
    let (spec, fds) = receive()?;
    for group in &spec.control_groups {
        fs_err::write(group.join("cgroup.procs"), "0").map_err(name("a control group cannot be joined"))?;
    }
    if let Some(path) = &spec.network_namespace {
        let namespace = File::open(path).map_err(name("the network namespace cannot be opened"))?;
        setns(namespace, CloneFlags::CLONE_NEWNET)
            .map_err(name("the network namespace cannot be entered"))?;
    }
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWPID,
    )
    .map_err(name("namespaces cannot be made"))?;

    // The pipe closes by itself when the program is executed; until then it carries the failure.
    let (failure, report) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(name("a pipe cannot be made"))?;
    // SAFETY: this process has one thread, so the child may go on as if it were the only one.
    #[allow(unsafe_code, reason = "a process namespace is entered by forking")]
    let forked = unsafe { nix::unistd::fork() }.map_err(name("the jail cannot fork"))?;
    match forked {
        ForkResult::Parent { child } => {
            drop(report);
            let mut step = String::new();
            File::from(failure)
                .read_to_string(&mut step)
                .map_err(name("the jail's report cannot be read"))?;
            if step.is_empty() { Ok(child.as_raw()) } else { Err(step) }
        }
        ForkResult::Child => {
            drop(failure);
            let step = match become_program(&spec, fds, &report) {
                Ok(never) => match never {},
                Err(step) => step,
            };
            let written = File::from(report).write_all(step.as_bytes());
            std::process::exit(if written.is_ok() { 1 } else { 2 });
        }
    }
}

/// Takes what the server sends, and puts the descriptors where the program expects them.
fn receive() -> Step<(Spec, i32)> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let mut first = [0];
    let mut pieces = [std::io::IoSliceMut::new(&mut first)];
    let mut space = nix::cmsg_space!([i32; MOST]);
    let received = recvmsg::<()>(0, &mut pieces, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)
        .map_err(name("this command is for the server's own use; its socket cannot be read"))?;
    let mut fds = Vec::new();
    for message in received.cmsgs().map_err(name("the descriptors cannot be received"))? {
        if let ControlMessageOwned::ScmRights(some) = message {
            fds.extend(some);
        }
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(name("the jail's description cannot be read"))?;
    let spec = serde_json::from_str(&text).map_err(name("the jail's description is malformed"))?;
    place(&fds)?;
    Ok((spec, fds.len() as i32))
}

/// Moves descriptors to 3, 4, … in order, by way of numbers that are in nobody's way; the copies
/// there close when the program starts.
#[allow(unsafe_code, reason = "descriptors that were received have raw numbers")]
fn place(fds: &[i32]) -> Step {
    let failed = |_| format!("a descriptor cannot be placed: {}", std::io::Error::last_os_error());
    let mut away = Vec::new();
    for fd in fds {
        // SAFETY: the number was received just now and is open; nothing takes ownership of it.
        let moved = unsafe { libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, 64) };
        away.push(if moved < 0 { Err(failed(())) } else { Ok(moved) }?);
    }
    for (fd, target) in away.into_iter().zip(FIRST..) {
        // SAFETY: what stands at the target is one of the received descriptors, already copied, or
        // nothing: this process has opened no other file yet.
        if unsafe { libc::dup2(fd, target) } < 0 {
            return Err(failed(()));
        }
    }
    Ok(())
}

fn become_program(spec: &Spec, fds: i32, report: &OwnedFd) -> Step<std::convert::Infallible> {
    nix::unistd::setsid().map_err(name("no session can be begun"))?;
    nix::unistd::sethostname("monitor").map_err(name("the host name cannot be set"))?;
    build_root(spec)?;
    redirect_standard_streams()?;
    keep_descriptors(fds, report)?;
    drop_privileges(spec)?;
    let words = std::iter::once(spec.program.as_os_str().as_bytes())
        .chain(spec.arguments.iter().map(|argument| argument.as_bytes()))
        .map(|word| CString::new(word).map_err(name("an argument holds a zero byte")))
        .collect::<Step<Vec<_>>>()?;
    let none: [CString; 0] = [];
    nix::unistd::execve(&words[0], &words, &none).map_err(name("the program cannot be executed"))
}

/// A root of nothing but what the spec names, on a small file system of its own.
fn build_root(spec: &Spec) -> Step {
    let root = &spec.root;
    mount_on(None, Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None)?;
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_on(Some(Path::new("tmpfs")), root, Some("tmpfs"), safe, Some("size=1m,nr_inodes=256,mode=755"))?;
    bind(Path::new("/usr"), &root.join("usr"), false)?;
    for path in ["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"] {
        system_directory(root, Path::new(path))?;
    }
    for path in ["/etc/ld.so.cache", "/etc/alternatives"] {
        if Path::new(path).exists() {
            bind(Path::new(path), &inside(root, Path::new(path)), false)?;
        }
    }
    for device in ["null", "zero", "full", "random", "urandom"] {
        let path = Path::new("/dev").join(device);
        bind_device(&path, &inside(root, &path))?;
    }
    for path in &spec.devices {
        bind_device(path, &inside(root, path))?;
    }
    let proc = root.join("proc");
    make_directory(&proc)?;
    mount_on(
        Some(Path::new("proc")),
        &proc,
        Some("proc"),
        safe | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY,
        None,
    )?;
    for b in &spec.binds {
        bind(&b.source, &inside(root, &b.target), b.writable)?;
    }
    nix::unistd::chdir(root).map_err(name("the jail's root cannot be entered"))?;
    nix::unistd::pivot_root(".", ".").map_err(name("the jail's root cannot become the root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(name("the host's root cannot be left"))?;
    nix::unistd::chdir("/").map_err(name("the jail's root cannot be entered"))?;
    mount_on(
        None,
        Path::new("/"),
        None,
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | safe,
        None,
    )
}

/// A top-level system directory is a link into `/usr` on most hosts, a directory on some.
fn system_directory(root: &Path, path: &Path) -> Step {
    match fs_err::symlink_metadata(path) {
        Ok(found) if found.is_symlink() => {
            let target = fs_err::read_link(path).map_err(name("a system link cannot be read"))?;
            fs_err::os::unix::fs::symlink(target, inside(root, path)).map_err(name("a link cannot be made"))
        }
        Ok(found) if found.is_dir() => bind(path, &inside(root, path), false),
        _ => Ok(()),
    }
}

fn bind(source: &Path, target: &Path, writable: bool) -> Step {
    if source.is_dir() {
        make_directory(target)?;
    } else {
        make_file(target)?;
    }
    mount_on(Some(source), target, None, MsFlags::MS_BIND, None)?;
    let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    if !writable {
        flags |= MsFlags::MS_RDONLY;
    }
    mount_on(None, target, None, flags, None)
}

fn bind_device(source: &Path, target: &Path) -> Step {
    make_file(target)?;
    mount_on(Some(source), target, None, MsFlags::MS_BIND, None)?;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount_on(None, target, None, flags, None)
}

fn mount_on(
    source: Option<&Path>,
    target: &Path,
    kind: Option<&str>,
    flags: MsFlags,
    data: Option<&str>,
) -> Step {
    mount(source, target, kind, flags, data)
        .map_err(|error| format!("{} cannot be mounted: {error}", source.unwrap_or(target).display()))
}

fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn make_directory(path: &Path) -> Step {
    fs_err::create_dir_all(path).map_err(name("a directory of the jail cannot be made"))
}

fn make_file(path: &Path) -> Step {
    if let Some(parent) = path.parent() {
        make_directory(parent)?;
    }
    fs_err::File::create(path).map(drop).map_err(name("a file of the jail cannot be made"))
}

/// Input from nowhere, output to the log that is standard error.
fn redirect_standard_streams() -> Step {
    let null = open("/dev/null", OFlag::O_RDWR, Mode::empty()).map_err(name("/dev/null cannot be opened"))?;
    nix::unistd::dup2_stdin(&null).map_err(name("standard input cannot be closed"))?;
    nix::unistd::dup2_stdout(std::io::stderr()).map_err(name("standard output cannot be redirected"))
}

/// The program gets its own descriptors and no other; whatever else is open closes when it starts.
fn keep_descriptors(fds: i32, report: &OwnedFd) -> Step {
    let open = fs_err::read_dir("/proc/self/fd").map_err(name("open descriptors cannot be listed"))?;
    let open: Vec<i32> = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    for fd in open {
        if fd < FIRST || fd == report.as_raw_fd() {
            continue;
        }
        // SAFETY: the number was read from the kernel just now; nothing else in this
        // single-threaded process closes it in between, and no ownership is taken.
        #[allow(unsafe_code, reason = "descriptors that were inherited have no owner here")]
        let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        let flags = if fd < FIRST + fds { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
        match fcntl(borrowed, FcntlArg::F_SETFD(flags)) {
            // The descriptor of the listing itself is closed by now.
            Ok(_) | Err(nix::errno::Errno::EBADF) => {}
            Err(error) => return Err(format!("descriptor {fd} cannot be kept or closed: {error}")),
        }
    }
    Ok(())
}

fn drop_privileges(spec: &Spec) -> Step {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(name("core dumps cannot be switched off"))?;
    setrlimit(Resource::RLIMIT_FSIZE, spec.file_size_limit, spec.file_size_limit)
        .map_err(name("the file size cannot be limited"))?;
    nix::unistd::setgroups(&[]).map_err(name("groups cannot be dropped"))?;
    let (uid, gid) = (Uid::from_raw(spec.uid), Gid::from_raw(spec.gid));
    nix::unistd::setresgid(gid, gid, gid).map_err(name("the group cannot be changed"))?;
    nix::unistd::setresuid(uid, uid, uid).map_err(name("the user cannot be changed"))?;
    nix::sys::prctl::set_no_new_privs().map_err(name("privileges cannot be given up"))
}

/// Names the step that failed.
fn name<E: std::fmt::Display>(step: &'static str) -> impl Fn(E) -> String {
    move |error| format!("{step}: {error}")
}
