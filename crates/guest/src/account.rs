//! Users and groups of the machine, read from `/etc/passwd` and `/etc/group`.
//!
//! The agent is linked statically, so it has no name service switch, and needs none: the machine's
//! users are in those two files. They are read anew for each use, since programs inside may change
//! them at any time, and not at all for root, which is what most calls run as.

use std::fs;

/// A user with what is needed to run as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Login name.
    pub name: String,
    /// User ID.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Home directory.
    pub home: String,
    /// All groups, the primary one included.
    pub groups: Vec<u32>,
}

impl Account {
    /// The user every call runs as unless it names another.
    pub fn root() -> Self {
        Self { name: "root".into(), uid: 0, gid: 0, home: "/root".into(), groups: vec![0] }
    }

    /// The account called `name` (or with that number); root for the empty name.
    pub fn find(name: &str) -> Option<Self> {
        if name.is_empty() || name == "root" {
            return Some(Self::root());
        }
        Accounts::load().account(name)
    }
}

/// The two files as they were at one moment.
#[derive(Default)]
pub struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// Reads both files. One that cannot be read counts as empty: numbers are shown for names then.
    pub fn load() -> Self {
        let read =
            |path| fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
        Self { passwd: read("/etc/passwd"), group: read("/etc/group") }
    }

    fn account(&self, wanted: &str) -> Option<Account> {
        let (name, uid, gid, home) = self
            .users()
            .find(|user| user.0 == wanted)
            .or_else(|| wanted.parse().ok().and_then(|uid: u32| self.users().find(|user| user.1 == uid)))?;
        let mut groups = vec![gid];
        for line in self.group.lines() {
            let mut fields = line.split(':');
            let (Some(_), Some(_), Some(id), Some(members)) =
                (fields.next(), fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            if let Ok(id) = id.parse()
                && members.split(',').any(|member| member.trim() == name)
                && !groups.contains(&id)
            {
                groups.push(id);
            }
        }
        Some(Account { name: name.into(), uid, gid, home: home.into(), groups })
    }

    fn users(&self) -> impl Iterator<Item = (&str, u32, u32, &str)> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            let home = fields.nth(1).filter(|home| home.starts_with('/')).unwrap_or("/");
            Some((name, uid, gid, home))
        })
    }

    /// The user's name, or the number where there is none.
    pub fn user_name(&self, uid: u32) -> String {
        self.users().find(|user| user.1 == uid).map_or_else(|| uid.to_string(), |user| user.0.into())
    }

    /// The user's shell; none where none is said.
    pub fn shell(&self, name: &str) -> Option<&str> {
        let line = self.passwd.lines().find(|line| line.split(':').next() == Some(name))?;
        line.split(':').nth(6).filter(|shell| shell.starts_with('/'))
    }

    /// The group's name, or the number where there is none.
    pub fn group_name(&self, gid: u32) -> String {
        self.group
            .lines()
            .find_map(|line| {
                let mut fields = line.split(':');
                let name = fields.next()?;
                (fields.nth(1)?.parse::<u32>().ok()? == gid).then(|| name.to_string())
            })
            .unwrap_or_else(|| gid.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/bash\nbroken line\n::7:7::/:\n\
                     user:x:1000:1000:,,,:/home/user:/bin/bash\nodd:x:12:34::relative:\nneg:x:-1:3::/:\n"
                .into(),
            group: "root:x:0:\nsudo:x:27:admin,user\nuser:x:1000:user\nusers:x:100: user \nbad:x:none:user\n"
                .into(),
        }
    }

    #[test]
    fn an_account_has_its_primary_group_and_those_that_name_it() {
        let user = accounts().account("user").unwrap();
        assert_eq!((user.uid, user.gid, user.home.as_str()), (1000, 1000, "/home/user"));
        assert_eq!(user.groups, [1000, 27, 100]);
        assert_eq!(accounts().account("1000"), Some(user));
        assert_eq!(accounts().shell("user"), Some("/bin/bash"));
        assert_eq!(accounts().shell("odd").or(accounts().shell("nobody-here")), None);
    }

    #[test]
    fn broken_lines_are_no_accounts() {
        for name in ["", "broken line", "neg", "7", "nobody-here"] {
            assert_eq!(accounts().account(name), None, "{name}");
        }
        assert_eq!(accounts().account("odd").unwrap().home, "/");
    }

    #[test]
    fn an_unknown_number_is_shown_as_the_number() {
        assert_eq!(accounts().user_name(1000), "user");
        assert_eq!(accounts().user_name(4242), "4242");
        assert_eq!(accounts().group_name(27), "sudo");
        assert_eq!(accounts().group_name(4242), "4242");
    }
}
