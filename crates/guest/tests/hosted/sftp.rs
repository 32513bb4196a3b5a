//! The agent's SFTP server: by a lane, and with OpenSSH's clients. Says `SKIP` where those are missing.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nullspace_guest_proto as pb;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::agent::Agent;
use crate::piped::Program;

const SERVER: &str = concat!(env!("CARGO_BIN_EXE_nullspace-guest"), " --sftp");

#[tokio::test]
async fn it_runs_as_its_user_and_ends_with_its_input() {
    let mut agent = Agent::start().await;
    let request = pb::RunPipedRequest { user: "nobody".into(), sftp: true, ..Default::default() };
    let mut program = Program::start(&mut agent, request).await;
    let greeting = [0, 0, 0, 5, 1, 0, 0, 0, 3];
    let make = b"\0\0\0\x1a\x0e\0\0\0\x07\0\0\0\x0d/root/refused\0\0\0\0";
    let mut reply = Vec::new();
    program.stdio.write_all(&[&greeting[..], make].concat()).await.unwrap();
    program.stdio.shutdown().await.unwrap();
    program.stdio.read_to_end(&mut reply).await.unwrap();
    let (version, status) = reply.split_at(4 + u32::from_be_bytes(reply[..4].try_into().unwrap()) as usize);
    assert_eq!(version[4..9], [2, 0, 0, 0, 3]);
    assert_eq!(status[4..13], [101, 0, 0, 0, 7, 0, 0, 0, 3], "permission denied");
    assert_eq!(program.exited().await, 0);
}

fn is_there(program: &str) -> bool {
    let there = Command::new(program).arg("-h").stdin(Stdio::null()).output().is_ok();
    if !there {
        eprintln!("SKIP: there is no {program}");
    }
    there
}

/// Runs a batch of commands; one that fails ends it.
fn sftp(directory: &Path, batch: &str) -> Output {
    let mut client = Command::new("sftp")
        .args(["-D", SERVER, "-b", "-"])
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    client.stdin.take().unwrap().write_all(batch.as_bytes()).unwrap();
    client.wait_with_output().unwrap()
}

fn done(directory: &Path, batch: &str) -> String {
    let output = sftp(directory, batch);
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{batch}\n{out}\n{errors}");
    out.into_owned()
}

#[test]
fn openssh_moves_files_whole_and_changes_what_they_are() {
    if !is_there("sftp") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let content: Vec<u8> = (0..20_000_003_u32).map(|n| (n % 251) as u8).collect();
    fs::write(here.join("big"), &content).unwrap();
    fs::set_permissions(here.join("big"), fs::Permissions::from_mode(0o750)).unwrap();
    let changed = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    fs::File::options().write(true).open(here.join("big")).unwrap().set_modified(changed).unwrap();

    done(here, "mkdir there\nput -p big there/big\nget there/big back\nput -f big there/synced\n");
    assert!(fs::read(here.join("back")).unwrap() == content);
    assert!(fs::read(here.join("there/synced")).unwrap() == content);
    let copied = fs::metadata(here.join("there/big")).unwrap();
    assert_eq!((copied.permissions().mode() & 0o777, copied.modified().unwrap()), (0o750, changed));

    fs::write(here.join("begun"), &content[..5_000_000]).unwrap();
    fs::write(here.join("there/begun"), &content[..7]).unwrap();
    done(here, "reget there/big begun\nreput big there/begun\n");
    assert!(fs::read(here.join("begun")).unwrap() == content);
    assert!(fs::read(here.join("there/begun")).unwrap() == content);

    let listed = done(
        here,
        "rename there/begun there/named\nrename there/big there/named\nln there/named there/hard\n\
         ln -s named there/soft\nchmod 600 there/named\nls -l there\ndf there\npwd\n",
    );
    assert!(listed.contains("-rw-------   2 root     root     20000003 Sep  9  2001"), "{listed}");
    assert!(listed.contains(here.canonicalize().unwrap().to_str().unwrap()), "{listed}");
    assert_eq!(fs::read_link(here.join("there/soft")).unwrap(), Path::new("named"));
    done(here, "rm there/*\nrmdir there\n");
    assert!(!here.join("there").exists());
}

#[test]
fn openssh_is_told_what_cannot_be_done() {
    if !is_there("sftp") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    fs::create_dir(here.join("full")).unwrap();
    fs::write(here.join("full/file"), "x").unwrap();
    symlink("nothing", here.join("dangling")).unwrap();
    for (command, said) in [
        ("get none", "not found"),
        ("get dangling", "o such file"),
        ("rmdir full", "ailure"),
        ("put full/file none/file", "o such file"),
        ("mkdir full", "ailure"),
    ] {
        let output = sftp(here, &format!("{command}\n"));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(said), "{command}: {errors}");
    }
}

#[test]
fn openssh_lists_a_large_directory_and_takes_a_whole_tree() {
    if !is_there("sftp") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    for tree in ["tree", "tree/deep/er"] {
        fs::create_dir_all(here.join(tree)).unwrap();
        (0..300).for_each(|n| fs::write(here.join(tree).join(format!("file {n}")), format!("{n}")).unwrap());
    }
    let listed = done(here, "ls -1 tree\nget -R tree copy\nput -R tree again\n");
    assert_eq!(listed.lines().filter(|line| line.starts_with("tree/file ")).count(), 300);
    for copy in ["copy", "again"] {
        let copied = here.join(copy).join("deep/er/file 299");
        assert_eq!(fs::read_to_string(&copied).unwrap(), "299", "{}", copied.display());
    }
}

#[test]
fn scp_copies_both_ways() {
    if !is_there("scp") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    // In place of `ssh`, whose arguments name the host and the subsystem.
    let relay = here.join("relay");
    fs::write(&relay, format!("#!/bin/sh\nexec {SERVER}\n")).unwrap();
    fs::set_permissions(&relay, fs::Permissions::from_mode(0o700)).unwrap();
    fs::create_dir_all(here.join("tree/deep")).unwrap();
    fs::write(here.join("tree/deep/file"), "content").unwrap();
    let (there, back) = (here.join("there"), here.join("back"));
    for (from, to) in [
        (here.join("tree").display().to_string(), format!("host:{}", there.display())),
        (format!("host:{}", there.display()), back.display().to_string()),
    ] {
        let copied =
            Command::new("scp").arg("-S").arg(&relay).args(["-s", "-r", &from, &to]).output().unwrap();
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    }
    assert_eq!(fs::read_to_string(back.join("deep/file")).unwrap(), "content");
}
