//! Looking for lines and names, and replacing text.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use nullspace_guest_proto as pb;
use tonic::{Code, Status};

use crate::agent::Agent;

impl Agent {
    async fn find(
        &mut self,
        path: &str,
        pattern: &str,
        limit: u64,
    ) -> Result<(Vec<pb::FileMatch>, bool), Status> {
        let request = pb::FindInFilesRequest {
            path: path.into(),
            pattern: pattern.into(),
            limit,
            ..Default::default()
        };
        let mut replies = self.client.find_in_files(request).await?.into_inner();
        let (mut all, mut limited) = (Vec::new(), false);
        while let Some(reply) = replies.message().await? {
            assert!(!limited, "nothing follows the last message");
            limited = reply.limited;
            all.extend(reply.matches);
        }
        Ok((all, limited))
    }

    /// As `name:line:content`, with paths below the machine's directory.
    async fn lines(&mut self, path: &str, pattern: &str) -> Vec<String> {
        let below = format!("{}/", self.cwd.display());
        let (matches, _) = self.find(path, pattern, 0).await.unwrap();
        matches
            .iter()
            .map(|found| {
                let path = found.path.strip_prefix(&below).unwrap_or(&found.path);
                format!("{path}:{}:{}", found.line, found.content)
            })
            .collect()
    }

    async fn search(&mut self, path: &str, pattern: &str, limit: u64) -> Result<(Vec<String>, bool), Status> {
        let request = pb::SearchFilesRequest {
            path: path.into(),
            pattern: pattern.into(),
            limit,
            ..Default::default()
        };
        let mut replies = self.client.search_files(request).await?.into_inner();
        let (mut all, mut limited) = (Vec::new(), false);
        while let Some(reply) = replies.message().await? {
            limited = reply.limited;
            all.extend(reply.paths);
        }
        Ok((all, limited))
    }

    async fn replace(
        &mut self,
        paths: &[&str],
        pattern: &str,
        replacement: &str,
        dry_run: bool,
    ) -> Result<pb::ReplaceInFilesReply, Status> {
        let request = pb::ReplaceInFilesRequest {
            paths: paths.iter().map(|path| (*path).into()).collect(),
            pattern: pattern.into(),
            replacement: replacement.into(),
            dry_run,
            ..Default::default()
        };
        self.client.replace_in_files(request).await.map(|reply| reply.into_inner())
    }
}

#[tokio::test]
async fn lines_are_found_in_order_by_regular_expression_or_else_literally() {
    let mut agent = Agent::start().await;
    let cwd = agent.cwd.clone();
    fs::create_dir_all(cwd.join("b/.hidden")).unwrap();
    fs::write(cwd.join("b/.hidden/f"), "one needle\r\nnothing\nneedle (two").unwrap();
    fs::write(cwd.join("a"), "no\nneedle\n").unwrap();
    fs::write(cwd.join("b-file"), b"needle \xff\n").unwrap();
    fs::write(cwd.join(".gitignore"), "*\n").unwrap();
    // What is not text, not a file, not in place yet, or somewhere else.
    fs::write(cwd.join("binary"), b"needle\n\0").unwrap();
    fs::write(cwd.join("binary-large"), "needle\n".repeat(1000) + &"\n".repeat(1 << 20) + "\0").unwrap();
    fs::write(cwd.join(".nullspace-write-1-new"), "needle").unwrap();
    nix::unistd::mkfifo(&cwd.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink("a", cwd.join("link")).unwrap();
    symlink("b", cwd.join("link-directory")).unwrap();

    let all =
        ["a:2:needle", "b/.hidden/f:1:one needle", "b/.hidden/f:3:needle (two", "b-file:1:needle \u{fffd}"];
    assert_eq!(agent.lines(".", "needle").await, all);
    assert_eq!(agent.lines(".", "^n.*e$").await, all[..1]);
    assert_eq!(agent.lines(".", "needle (t").await, all[2..3], "not a regular expression");
    assert_eq!(agent.lines("link", "needle").await, ["link:2:needle"], "a link that is named is followed");
    assert_eq!(agent.lines(".", "nowhere").await, [""; 0]);
    assert!(!agent.lines("/proc/self", "^Name:").await.is_empty(), "/proc may be named");

    for (limit, limited) in [(1, true), (2, false)] {
        let found = agent.find("b", "needle", limit).await.unwrap();
        assert_eq!((found.0.len() as u64, found.1), (limit, limited));
    }

    for (path, pattern, code) in [
        (".", "", Code::InvalidArgument),
        (".", "a\nb", Code::InvalidArgument),
        (".", "a\0b", Code::InvalidArgument),
        (".", &*"x".repeat(65_537), Code::InvalidArgument),
        ("pipe", "x", Code::InvalidArgument),
        ("missing", "x", Code::NotFound),
        ("/workspace/.nullspace", "x", Code::InvalidArgument),
    ] {
        assert_eq!(agent.find(path, pattern, 0).await.unwrap_err().code(), code, "{path} {pattern}");
    }
}

#[tokio::test]
async fn a_search_is_bounded_in_matches_and_content_and_ends_with_its_reader() {
    let mut agent = Agent::start().await;
    fs::create_dir_all(&agent.cwd).unwrap();
    fs::write(agent.cwd.join("short"), "needle\n".repeat(30_000)).unwrap();
    let (matches, limited) = agent.find("short", "needle", 1_000_000).await.unwrap();
    assert!(matches.len() == 10_000 && limited && matches[9999].line == 10_000);

    let line = "needle".to_string() + &"é".repeat(20_000) + "\n";
    fs::write(agent.cwd.join("wide"), line.repeat(2200)).unwrap();
    let (matches, limited) = agent.find("wide", "needle", 0).await.unwrap();
    assert!(limited && matches.iter().all(|found| found.content.len() == 4096));
    assert_eq!(matches.len(), (8 << 20) / 4096);

    // Without a match there is nothing to tell, and still it is seen that nobody listens.
    fs::write(agent.cwd.join("long"), "no match\n".repeat(8 << 20)).unwrap();
    for n in 0..100 {
        fs::hard_link(agent.cwd.join("long"), agent.cwd.join(format!("long-{n}"))).unwrap();
    }
    let request =
        pb::FindInFilesRequest { path: ".".into(), pattern: "nothing".into(), ..Default::default() };
    drop(agent.client.find_in_files(request).await.unwrap());
    let is_reading = |pid| {
        fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .filter_map(|file| fs::read_link(file.unwrap().path()).ok())
            .any(|path| path.starts_with(&agent.cwd))
    };
    while is_reading(agent.pid()) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn names_are_found_by_glob_at_any_depth() {
    let mut agent = Agent::start().await;
    let cwd = agent.cwd.clone();
    fs::create_dir_all(cwd.join("x.py/deep")).unwrap();
    for name in ["a.py", "x.py/deep/b.py", "x.py/deep/c.txt", ".d.py", ".nullspace-write-1-new.py"] {
        fs::write(cwd.join(name), "").unwrap();
    }
    symlink("/", cwd.join("root.py")).unwrap();
    let (paths, limited) = agent.search(".", "*.py", 0).await.unwrap();
    let names: Vec<_> = paths.iter().map(|path| path.strip_prefix(cwd.to_str().unwrap()).unwrap()).collect();
    assert_eq!(names, ["/.d.py", "/a.py", "/root.py", "/x.py", "/x.py/deep/b.py"]);
    assert!(!limited);
    assert_eq!(agent.search(".", "[bc].{py,txt}", 1).await.unwrap(), (vec![paths[4].clone()], true));
    assert_eq!(agent.search(".", "nothing", 0).await.unwrap(), (vec![], false));
    let error = agent.search(".", "[", 0).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().starts_with("pattern \"[\" is no glob: "), "{error}");
    assert_eq!(agent.search("missing", "*", 0).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(agent.search("a.py", "*", 0).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn text_is_replaced_in_each_file_whole_or_not_at_all() {
    let mut agent = Agent::start().await;
    let cwd = agent.cwd.clone();
    fs::create_dir_all(cwd.join("dir")).unwrap();
    let write = |name: &str, content: &[u8]| fs::write(cwd.join(name), content).unwrap();
    write("a", b"one.one\none\n");
    write("b", b"none but on.\n");
    write("binary", b"one\0");
    write("plain", b"two\n");
    let large = "one and more\n".repeat(100_000);
    write("large", large.as_bytes());
    fs::set_permissions(cwd.join("a"), fs::Permissions::from_mode(0o4750)).unwrap();

    let files = ["a", "./a", "b", "binary", "plain", "large"];
    let expected = pb::ReplaceInFilesReply {
        replacements: 100_004,
        files_modified: 3,
        files_skipped: 1,
        binary_files_skipped: 1,
    };
    assert_eq!(agent.replace(&files, "one", "one!", true).await.unwrap(), expected);
    assert_eq!(fs::read(cwd.join("a")).unwrap(), b"one.one\none\n");
    for (bad, code) in
        [("missing", Code::NotFound), ("dir", Code::InvalidArgument), ("", Code::InvalidArgument)]
    {
        let error = agent.replace(&["a", bad], "one", "x", false).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
    assert_eq!(agent.replace(&["a"], "", "x", false).await.unwrap_err().code(), Code::InvalidArgument);
    let sparse = fs::File::create(cwd.join("sparse")).unwrap();
    sparse.set_len((256 << 20) + 1).unwrap();
    let error = agent.replace(&["a", "sparse"], "one", "x", false).await.unwrap_err();
    assert!(error.message().contains("is larger than 268435456 bytes"), "{error}");
    assert_eq!(fs::read(cwd.join("a")).unwrap(), b"one.one\none\n", "nothing is changed by then");

    assert_eq!(agent.replace(&files, "one", "one!", false).await.unwrap(), expected);
    assert_eq!(fs::read(cwd.join("a")).unwrap(), b"one!.one!\none!\n");
    assert_eq!(fs::read(cwd.join("b")).unwrap(), b"none! but on.\n");
    assert_eq!(fs::read(cwd.join("binary")).unwrap(), b"one\0");
    assert_eq!(fs::read_to_string(cwd.join("large")).unwrap(), large.replace("one", "one!"));
    assert_eq!(fs::metadata(cwd.join("a")).unwrap().mode() & 0o7777, 0o4750);
    assert_eq!(fs::read_dir(&cwd).unwrap().count(), 7, "nothing temporary is left");
}
