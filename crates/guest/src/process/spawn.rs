//! Starts a program.
//!
//! The child shares the agent's memory until it executes the program (`CLONE_VM | CLONE_VFORK`): no
//! page table is copied and no page is copied on write afterwards, which a fork would cost the agent
//! at every start. The child therefore does nothing but system calls, on a stack of its own, while
//! the calling thread stands still; what went wrong it leaves in that shared memory.
//!
//! It is born in its control group (`clone3`, `CLONE_INTO_CGROUP`): to be moved there afterwards takes the
//! kernel long, and what it had started by then would be left behind.
//!
//! Users are changed by bare system calls: the C library's functions would change all threads of a
//! process, and the child's threads are the agent's.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;

use nix::errno::Errno;

use crate::account::Account;

/// A program to start. Everything the child needs is made ready here.
pub struct Program<'a> {
    /// Tried in this order, as `execvp` does.
    pub candidates: Vec<CString>,
    pub arguments: Vec<CString>,
    pub environment: Vec<CString>,
    pub directory: CString,
    pub account: &'a Account,
    /// Whether the agent may change users; when it may not, the child runs as the agent does.
    pub change_user: bool,
    /// The control group that it is born in; none: the agent's.
    pub group: Option<BorrowedFd<'a>>,
    /// Whether standard input is a terminal, which is to be that of the child's session.
    pub terminal: bool,
    pub stdin: BorrowedFd<'a>,
    pub stdout: BorrowedFd<'a>,
    pub stderr: BorrowedFd<'a>,
}

/// What the child was doing when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Making the child, or giving it its session and its files.
    Prepare,
    /// Becoming the user.
    User,
    /// Going to the directory.
    Directory,
    /// Executing the program.
    Execute,
}

/// What the child works on: pointers into the `Program` and buffers of `spawn`.
struct Child {
    candidates: *const *const c_char,
    arguments: *const *const c_char,
    /// `/bin/sh`, a place for the script's path, and the arguments after the first.
    script_arguments: *mut *const c_char,
    environment: *const *const c_char,
    directory: *const c_char,
    change_user: bool,
    terminal: bool,
    uid: u32,
    gid: u32,
    groups: *const u32,
    group_count: usize,
    files: [RawFd; 3],
    failure: Option<(Stage, c_int)>,
}

/// The child has the agent's memory, and the calling thread waits until it has its own.
const SHARED: c_int = libc::CLONE_VM | libc::CLONE_VFORK;
const STACK_BYTES: usize = 32 << 10;
const SHELL: &std::ffi::CStr = c"/bin/sh";

/// Starts the program in a session of its own and returns its process ID.
pub fn spawn(program: &Program<'_>) -> Result<u32, (Stage, Errno)> {
    fn pointers(strings: &[CString]) -> Vec<*const c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
    }
    let candidates = pointers(&program.candidates);
    let arguments = pointers(&program.arguments);
    let environment = pointers(&program.environment);
    let mut script_arguments: Vec<_> =
        [SHELL.as_ptr(), ptr::null()].into_iter().chain(arguments.iter().skip(1).copied()).collect();
    let mut child = Child {
        candidates: candidates.as_ptr(),
        arguments: arguments.as_ptr(),
        script_arguments: script_arguments.as_mut_ptr(),
        environment: environment.as_ptr(),
        directory: program.directory.as_ptr(),
        change_user: program.change_user,
        terminal: program.terminal,
        uid: program.account.uid,
        gid: program.account.gid,
        groups: program.account.groups.as_ptr(),
        group_count: program.account.groups.len(),
        files: [program.stdin.as_raw_fd(), program.stdout.as_raw_fd(), program.stderr.as_raw_fd()],
        failure: None,
    };
    let mut stack = Vec::<u128>::with_capacity(STACK_BYTES / size_of::<u128>());
    let child_pointer: *mut Child = &raw mut child;
    let argument = child_pointer.cast::<c_void>();
    // SAFETY: `stack` and everything `child` points to outlive the call, which returns only after the
    // child has executed a program or exited (CLONE_VFORK). The stack grows down from its end, which
    // is aligned as u128 is. `run` makes system calls only and never returns into Rust's frames.
    let pid = unsafe {
        match program.group.map(|group| clone_into(group, stack.spare_capacity_mut(), argument)) {
            Some(Ok(pid)) => pid,
            // A group that takes no programs any more must not keep them from being started.
            Some(Err(_)) | None => {
                let top = stack.as_mut_ptr().add(stack.capacity()).cast::<c_void>();
                libc::clone(run, top, SHARED | libc::SIGCHLD, argument)
            }
        }
    };
    if pid < 0 {
        return Err((Stage::Prepare, Errno::last()));
    }
    // SAFETY: the child is gone or runs another program; nobody else writes here now. Volatile,
    // because the compiler did not see the child's write.
    match unsafe { ptr::read_volatile(&raw const (*child_pointer).failure) } {
        Some((stage, errno)) => Err((stage, Errno::from_raw(errno))),
        None => Ok(pid as u32),
    }
}

/// As `clone` of `run` with `argument`, in a control group. The C library has no such call, since the child
/// comes back on another stack: there it goes straight into `run`.
///
/// SAFETY: as for `clone`; the stack must be aligned as u128 is, and nobody else's until the child has
/// executed a program or exited.
#[cfg(target_arch = "x86_64")]
unsafe fn clone_into(
    group: BorrowedFd<'_>,
    stack: &mut [MaybeUninit<u128>],
    argument: *mut c_void,
) -> Result<c_int, Errno> {
    // Of the kernel's `sched.h`; the C library's type is too small for it.
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    // SAFETY: for this structure zeros say that nothing is asked for.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = SHARED as u64 | CLONE_INTO_CGROUP;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.stack = stack.as_mut_ptr() as u64;
    arguments.stack_size = size_of_val(stack) as u64;
    arguments.cgroup = group.as_raw_fd() as u64;
    let mut result = libc::SYS_clone3;
    // SAFETY: the call changes the registers that are named, in the child also the stack pointer, which is
    // then the end of `stack`. The child leaves by `run`, which does not return, and so never touches the
    // frame of this function.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, rdx",
            "call {run}",
            "ud2",
            "2:",
            run = sym run,
            inlateout("rax") result,
            in("rdi") &raw const arguments,
            in("rsi") size_of::<libc::clone_args>(),
            in("rdx") argument,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    if result < 0 { Err(Errno::from_raw(-result as c_int)) } else { Ok(result as c_int) }
}

/// Elsewhere programs are born where the agent is.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn clone_into(_: BorrowedFd<'_>, _: &mut [MaybeUninit<u128>], _: *mut c_void) -> Result<c_int, Errno> {
    Err(Errno::ENOSYS)
}

extern "C" fn run(argument: *mut c_void) -> c_int {
    // SAFETY: `argument` is the `Child` of `spawn`, which waits for us and touches nothing.
    let child = unsafe { &mut *argument.cast::<Child>() };
    // SAFETY: system calls on pointers that `spawn` keeps alive.
    let failure = unsafe { become_program(child) };
    // SAFETY: as above; volatile so that the write is there when the parent goes on.
    unsafe {
        ptr::write_volatile(&raw mut child.failure, Some(failure));
        libc::_exit(127)
    }
}

/// Returns only on failure.
///
/// SAFETY: only for the child of `spawn`, whose pointers are all valid.
unsafe fn become_program(child: &mut Child) -> (Stage, c_int) {
    let errno = || Errno::last_raw();
    // SAFETY: see above; each call takes plain values or those pointers.
    unsafe {
        if libc::setsid() < 0 {
            return (Stage::Prepare, errno());
        }
        // The agent blocks the signals it reads from a descriptor, and ignores SIGPIPE.
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        for (target, source) in child.files.iter().enumerate() {
            if libc::dup2(*source, target as c_int) < 0 {
                return (Stage::Prepare, errno());
            }
        }
        if child.terminal && libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) < 0 {
            return (Stage::Prepare, errno());
        }
        if child.change_user
            && (libc::syscall(libc::SYS_setgroups, child.group_count, child.groups) < 0
                || libc::syscall(libc::SYS_setresgid, child.gid, child.gid, child.gid) < 0
                || libc::syscall(libc::SYS_setresuid, child.uid, child.uid, child.uid) < 0)
        {
            return (Stage::User, errno());
        }
        if libc::chdir(child.directory) < 0 {
            return (Stage::Directory, errno());
        }
        let mut result = libc::ENOENT;
        let mut candidate = child.candidates;
        // A failed execution costs the kernel far more than a look.
        let look = !(*candidate).is_null() && !(*candidate.add(1)).is_null();
        while !(*candidate).is_null() {
            if !look || libc::access(*candidate, libc::F_OK) == 0 {
                libc::execve(*candidate, child.arguments, child.environment);
            }
            match errno() {
                // A later directory of the path may have it.
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => result = libc::EACCES,
                libc::ENOEXEC => {
                    *child.script_arguments.add(1) = *candidate;
                    libc::execve(SHELL.as_ptr(), child.script_arguments, child.environment);
                    return (Stage::Execute, libc::ENOEXEC);
                }
                other => return (Stage::Execute, other),
            }
            candidate = candidate.add(1);
        }
        (Stage::Execute, result)
    }
}
