//! A PostgreSQL of the test's own: a fresh cluster in a temporary directory, on a Unix socket only, run by
//! an unprivileged user. A shell holds it and stops it when its standard input ends, which happens when the
//! test ends in whatever way, a kill included.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

pub struct Server {
    holder: Child,
    directory: Option<tempfile::TempDir>,
}

const SETTINGS: &str = "-c listen_addresses= -c fsync=off -c synchronous_commit=off -c full_page_writes=off \
                        -c max_connections=100 -c autovacuum=off";

const HOLD: &str = r#"
"$1/initdb" --no-sync --auth=trust --username=nullspace --encoding=UTF8 --locale=C -D "$2/data" >"$2/log" 2>&1 || exit 1
"$1/pg_ctl" -D "$2/data" -w -t 60 -l "$2/log" -o "$3 -k $2" start >/dev/null 2>&1 || exit 1
echo ready
read -r _
exec "$1/pg_ctl" -D "$2/data" -m immediate -w stop >/dev/null 2>&1
"#;

impl Server {
    /// None, and a word about it, if there is no PostgreSQL here.
    #[allow(clippy::print_stdout, reason = "a test that cannot run says so")]
    pub fn start() -> Option<Self> {
        let Some(binaries) = binaries() else {
            println!(
                "SKIP: no PostgreSQL server here (looked at pg_config --bindir and /usr/lib/postgresql)"
            );
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        let mut shell = Command::new("sh");
        shell.args(["-c", HOLD, "sh"]).arg(&binaries).arg(directory.path()).arg(SETTINGS);
        // PostgreSQL refuses to run as root.
        if directory.path().metadata().unwrap().uid() == 0 {
            let Some((user, group)) = unprivileged() else {
                println!("SKIP: PostgreSQL does not run as root, and there is no user postgres or nobody");
                return None;
            };
            std::os::unix::fs::chown(directory.path(), Some(user), Some(group)).unwrap();
            shell.uid(user).gid(group).current_dir("/");
        }
        let mut holder = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let server = Self { holder, directory: Some(directory) };
        assert_eq!(said, "ready\n", "PostgreSQL did not start:\n{}", server.log());
        Some(server)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path().join("log")).unwrap_or_default()
    }

    fn path(&self) -> &Path {
        self.directory.as_ref().expect("it is there until the end").path()
    }

    fn url(&self, database: &str) -> String {
        format!("postgres:///{database}?user=nullspace&host={}", self.path().display())
    }

    /// The URL of a new database. PostgreSQL cuts names at 63 characters.
    pub async fn database(&self, name: &str) -> String {
        let name = &name[..name.len().min(63)];
        let mut connection = sqlx::PgConnection::connect(&self.url("postgres")).await.unwrap();
        connection.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
        connection.close().await.unwrap();
        self.url(name)
    }
}

impl Drop for Server {
    #[allow(clippy::print_stderr, reason = "where the log is belongs to the result of the test")]
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let ended = self.holder.wait();
        if std::thread::panicking() || !ended.is_ok_and(|status| status.success()) {
            // Kept for whoever looks into it.
            let kept = self.directory.take().map(tempfile::TempDir::keep);
            eprintln!("the PostgreSQL of this test is kept in {kept:?}");
        }
    }
}

fn binaries() -> Option<PathBuf> {
    let serves = |directory: &PathBuf| {
        ["initdb", "pg_ctl", "postgres"].iter().all(|name| directory.join(name).exists())
    };
    let configured = Command::new("pg_config").arg("--bindir").output().ok();
    let configured = configured.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let mut installed: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            Some((path.file_name()?.to_str()?.parse().ok()?, path.join("bin")))
        })
        .collect();
    installed.sort();
    configured.into_iter().chain(installed.into_iter().rev().map(|(_, path)| path)).find(serves)
}

/// The IDs of a user that PostgreSQL agrees to run as.
fn unprivileged() -> Option<(u32, u32)> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    ["postgres", "nobody"].iter().find_map(|name| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    })
}
