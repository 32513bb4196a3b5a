//! What packets say of a file: attributes, and the line of a list that people are shown.

use std::fs::{File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, fchown};
use std::path::Path;

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, futimens, utimensat};
use nix::sys::time::TimeSpec;

use super::wire::{Fields, Malformed, Reply};
use crate::account::Accounts;

const SIZE: u32 = 1;
const OWNER: u32 = 2;
const MODE: u32 = 4;
const TIMES: u32 = 8;
const EXTENDED: u32 = 0x8000_0000;

/// Attributes that a client names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    size: Option<u64>,
    owner: Option<(u32, u32)>,
    mode: Option<u32>,
    /// Of the last use and the last change, in seconds.
    times: Option<(u32, u32)>,
}

impl Wanted {
    pub fn read(fields: &mut Fields<'_>) -> Result<Self, Malformed> {
        let flags = fields.u32()?;
        let has = |flag| flags & flag != 0;
        let mut wanted = Self::default();
        if has(SIZE) {
            wanted.size = Some(fields.u64()?);
        }
        if has(OWNER) {
            wanted.owner = Some((fields.u32()?, fields.u32()?));
        }
        if has(MODE) {
            wanted.mode = Some(fields.u32()? & 0o7777);
        }
        if has(TIMES) {
            wanted.times = Some((fields.u32()?, fields.u32()?));
        }
        if has(EXTENDED) {
            // Pairs that nobody has given a meaning to.
            for _ in 0..fields.u32()? {
                fields.bytes()?;
                fields.bytes()?;
            }
        }
        Ok(wanted)
    }

    /// The permissions of something new.
    pub fn mode_or(&self, mode: u32) -> u32 {
        self.mode.unwrap_or(mode)
    }

    /// Gives them to what is at a path, following links. In OpenSSH's order.
    pub fn set(&self, path: &Path) -> io::Result<()> {
        if let Some(size) = self.size {
            File::options().write(true).open(path)?.set_len(size)?;
        }
        if let Some(mode) = self.mode {
            std::fs::set_permissions(path, Permissions::from_mode(mode))?;
        }
        if let Some((used, changed)) = self.times {
            let (used, changed) = (seconds(used), seconds(changed));
            utimensat(AT_FDCWD, path, &used, &changed, UtimensatFlags::FollowSymlink)?;
        }
        if let Some((uid, gid)) = self.owner {
            chown(path, Some(uid), Some(gid))?;
        }
        Ok(())
    }

    /// The same for what is open.
    pub fn set_open(&self, file: &File) -> io::Result<()> {
        if let Some(size) = self.size {
            file.set_len(size)?;
        }
        if let Some(mode) = self.mode {
            file.set_permissions(Permissions::from_mode(mode))?;
        }
        if let Some((used, changed)) = self.times {
            futimens(file, &seconds(used), &seconds(changed))?;
        }
        if let Some((uid, gid)) = self.owner {
            fchown(file, Some(uid), Some(gid))?;
        }
        Ok(())
    }
}

fn seconds(time: u32) -> TimeSpec {
    TimeSpec::new(time.into(), 0)
}

/// All of a file's attributes.
pub fn write(reply: &mut Reply<'_>, metadata: &Metadata) {
    reply.u32(SIZE | OWNER | MODE | TIMES).u64(metadata.size()).u32(metadata.uid()).u32(metadata.gid());
    // Version 3 has four bytes for a time.
    reply.u32(metadata.mode()).u32(metadata.atime() as u32).u32(metadata.mtime() as u32);
}

/// None of them.
pub fn write_none(reply: &mut Reply<'_>) {
    reply.u32(0);
}

/// The line of a list, as `ls -l` writes it in English and in UTC. `now`: seconds since the epoch.
pub fn line(name: &[u8], metadata: &Metadata, accounts: &Accounts, now: i64) -> Vec<u8> {
    let mut line = format!(
        "{} {:3} {:8} {:8} {:8} {} ",
        mode_text(metadata.mode()),
        metadata.nlink(),
        accounts.user_name(metadata.uid()),
        accounts.group_name(metadata.gid()),
        metadata.size(),
        date(metadata.mtime(), now),
    )
    .into_bytes();
    line.extend_from_slice(name);
    line
}

fn mode_text(mode: u32) -> String {
    let kind = match mode & libc::S_IFMT {
        libc::S_IFDIR => 'd',
        libc::S_IFLNK => 'l',
        libc::S_IFCHR => 'c',
        libc::S_IFBLK => 'b',
        libc::S_IFIFO => 'p',
        libc::S_IFSOCK => 's',
        _ => '-',
    };
    let mut text = String::from(kind);
    for (shift, special, mark) in [(6, libc::S_ISUID, 's'), (3, libc::S_ISGID, 's'), (0, libc::S_ISVTX, 't')]
    {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => mark,
            (false, true) => mark.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// With the time for what changed within the last half year, else with the year.
fn date(time: i64, now: i64) -> String {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    const DAY: i64 = 24 * 60 * 60;
    let (year, month, day) = civil(time.div_euclid(DAY));
    let month = MONTHS[month as usize - 1];
    if (now - 182 * DAY..=now).contains(&time) {
        let minutes = time.rem_euclid(DAY) / 60;
        format!("{month} {day:2} {:02}:{:02}", minutes / 60, minutes % 60)
    } else {
        format!("{month} {day:2}  {year}")
    }
}

/// Year, month and day of so many days since the epoch: `civil_from_days` of Howard Hinnant's "chrono-Compatible
/// Low-Level Date Algorithms".
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::{date, mode_text};

    #[test]
    fn a_line_says_what_ls_says() {
        for (mode, text) in [
            (0o100_644, "-rw-r--r--"),
            (0o041_777, "drwxrwxrwt"),
            (0o104_755, "-rwsr-xr-x"),
            (0o106_600, "-rwS--S---"),
            (0o120_777, "lrwxrwxrwx"),
        ] {
            assert_eq!(mode_text(mode), text);
        }
        let now = 1_709_208_000;
        for (time, text) in [
            (now, "Feb 29 12:00"),
            (now - 100 * 86_400, "Nov 21 12:00"),
            (now + 60, "Feb 29  2024"),
            (0, "Jan  1  1970"),
            (-1, "Dec 31  1969"),
            (951_782_400, "Feb 29  2000"),
            (4_107_542_400, "Mar  1  2100"),
        ] {
            assert_eq!(date(time, now), text);
        }
    }
}
