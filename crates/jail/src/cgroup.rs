//! Control groups of machines, in either version of the kernel's interface.
//!
//! Groups are made below the server's own, so that a service manager's limits on the server hold
//! for its machines. A host that allows none gets none: [`Hierarchy::find`] says what there is.

use std::path::{Path, PathBuf};

use crate::Error;

/// What a group may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Hundredths of a processor.
    pub cpu_percent: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Threads.
    pub tasks: u32,
}

/// Where groups can be made on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hierarchy {
    /// Version 2: one tree with all controllers.
    Unified {
        /// The directory that holds the machines' groups.
        parent: PathBuf,
    },
    /// Version 1: a tree per controller.
    Legacy {
        /// Controller name and the directory that holds the machines' groups.
        parents: Vec<(String, PathBuf)>,
    },
    /// None that can be written to, and why.
    Absent(String),
}

/// The period of the processor quota, in microseconds.
const PERIOD_US: u64 = 100_000;
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

impl Hierarchy {
    /// Finds where this process may make groups, and makes the parent group `name` there.
    pub fn find(name: &str) -> Self {
        let read = |path: &str| fs_err::read_to_string(path).unwrap_or_default();
        let (mounts, own) = (read("/proc/self/mountinfo"), read("/proc/self/cgroup"));
        Self::unified(&mounts, &own, name)
            .or_else(|unified| {
                Self::legacy(&mounts, &own, name).map_err(|legacy| format!("{unified}; {legacy}"))
            })
            .unwrap_or_else(Self::Absent)
    }

    fn unified(mounts: &str, own: &str, name: &str) -> Result<Self, String> {
        let mount = cgroup_mounts(mounts)
            .find(|(kind, _, _)| *kind == "cgroup2")
            .map(|(_, point, _)| PathBuf::from(point))
            .ok_or("no version 2 hierarchy is mounted")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
        let base = mount.join(own.trim_start_matches('/'));
        let offered = fs_err::read_to_string(base.join("cgroup.controllers")).map_err(|e| e.to_string())?;
        if !CONTROLLERS.iter().all(|c| offered.split_ascii_whitespace().any(|word| word == *c)) {
            return Err(format!("version 2 offers only [{}]", offered.trim()));
        }
        // A group with controllers for its children may hold no process itself (but the root may):
        // the server moves to a leaf beside its machines.
        if own != "/" {
            let leaf = base.join("server");
            make(&leaf).and_then(|()| write(&leaf.join("cgroup.procs"), "0")).map_err(chain)?;
        }
        let enable = CONTROLLERS.map(|c| format!("+{c}")).join(" ");
        let parent = base.join(name);
        write(&base.join("cgroup.subtree_control"), &enable)
            .and_then(|()| make(&parent))
            .and_then(|()| write(&parent.join("cgroup.subtree_control"), &enable))
            .map_err(chain)?;
        Ok(Self::Unified { parent })
    }

    fn legacy(mounts: &str, own: &str, name: &str) -> Result<Self, String> {
        let mut parents = Vec::new();
        for controller in CONTROLLERS {
            let Some((_, point, _)) = cgroup_mounts(mounts).find(|(kind, _, options)| {
                *kind == "cgroup" && options.split(',').any(|option| option == controller)
            }) else {
                continue;
            };
            let own = own
                .lines()
                .filter_map(|line| line.split_once(':')?.1.split_once(':'))
                .find(|(controllers, _)| controllers.split(',').any(|c| c == controller))
                .map_or("/", |(_, path)| path);
            // Below the own group if it is visible here, else below the root of the hierarchy.
            let below = Path::new(point).join(own.trim_start_matches('/'));
            let base = if below.is_dir() { below } else { PathBuf::from(point) };
            let parent = base.join(name);
            if make(&parent).is_ok() {
                parents.push((controller.to_owned(), parent));
            }
        }
        if parents.is_empty() {
            Err("no version 1 controller is usable".into())
        } else {
            Ok(Self::Legacy { parents })
        }
    }

    /// Makes a group with limits; answers the directories to join. Empty where groups are absent.
    pub fn make(&self, name: &str, limits: Limits) -> Result<Vec<PathBuf>, Error> {
        let quota = u64::from(limits.cpu_percent) * PERIOD_US / 100;
        match self {
            Self::Unified { parent } => {
                let group = parent.join(name);
                make(&group)?;
                write(&group.join("cpu.max"), &format!("{quota} {PERIOD_US}"))?;
                write(&group.join("memory.max"), &limits.memory_bytes.to_string())?;
                write(&group.join("pids.max"), &limits.tasks.to_string())?;
                Ok(vec![group])
            }
            Self::Legacy { parents } => {
                let mut groups = Vec::new();
                for (controller, parent) in parents {
                    let group = parent.join(name);
                    make(&group)?;
                    match controller.as_str() {
                        "cpu" => {
                            write(&group.join("cpu.cfs_period_us"), &PERIOD_US.to_string())?;
                            write(&group.join("cpu.cfs_quota_us"), &quota.to_string())?;
                        }
                        "memory" => {
                            write(&group.join("memory.limit_in_bytes"), &limits.memory_bytes.to_string())?;
                        }
                        _ => write(&group.join("pids.max"), &limits.tasks.to_string())?,
                    }
                    groups.push(group);
                }
                Ok(groups)
            }
            Self::Absent(_) => Ok(Vec::new()),
        }
    }

    /// Every group made here and not removed yet, by name.
    pub fn list(&self) -> Vec<String> {
        let parents: Vec<&PathBuf> = match self {
            Self::Unified { parent } => vec![parent],
            Self::Legacy { parents } => parents.iter().map(|(_, parent)| parent).collect(),
            Self::Absent(_) => Vec::new(),
        };
        let mut names: Vec<String> = parents
            .into_iter()
            .filter_map(|parent| fs_err::read_dir(parent).ok())
            .flatten()
            .filter_map(|entry| entry.ok().filter(|e| e.path().is_dir())?.file_name().into_string().ok())
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// The processes in a group.
    pub fn processes(&self, name: &str) -> Vec<u32> {
        let files = self.paths(name).into_iter().map(|group| group.join("cgroup.procs"));
        let texts = files.filter_map(|file| fs_err::read_to_string(file).ok());
        let mut pids: Vec<u32> = texts
            .flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<_>>())
            .collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Removes a group in which nothing runs any more. One that is not there is no error.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        for group in self.paths(name) {
            match fs_err::remove_dir(&group) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(Error::ControlGroup { path: group, source }),
            }
        }
        Ok(())
    }

    /// Removes the parent group once it is empty.
    pub fn remove_parent(&self) -> Result<(), Error> {
        self.remove("")
    }

    fn paths(&self, name: &str) -> Vec<PathBuf> {
        match self {
            Self::Unified { parent } => vec![parent.join(name)],
            Self::Legacy { parents } => parents.iter().map(|(_, parent)| parent.join(name)).collect(),
            Self::Absent(_) => Vec::new(),
        }
    }
}

/// Type, mount point and super options of every control group mount.
fn cgroup_mounts(mountinfo: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    mountinfo.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let (kind, _source, options) = (right.next()?, right.next()?, right.next()?);
        kind.starts_with("cgroup").then_some((kind, left.split(' ').nth(4)?, options))
    })
}

fn make(path: &Path) -> Result<(), Error> {
    fs_err::create_dir_all(path).map_err(|source| Error::ControlGroup { path: path.to_owned(), source })
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    fs_err::write(path, text).map_err(|source| Error::ControlGroup { path: path.to_owned(), source })
}

fn chain(error: Error) -> String {
    match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_both_versions_are_read() {
        let text = "30 25 0:26 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
                    31 25 0:27 / /sys/fs/cgroup/unified rw - cgroup2 none rw\n\
                    32 25 0:28 / /tmp rw - tmpfs tmpfs rw\n";
        let found: Vec<_> = cgroup_mounts(text).collect();
        assert_eq!(
            found,
            [("cgroup", "/sys/fs/cgroup/memory", "rw,memory"), ("cgroup2", "/sys/fs/cgroup/unified", "rw")]
        );
    }

    #[test]
    fn a_group_is_made_with_its_limits_and_removed() {
        let hierarchy = Hierarchy::find(&format!("nullspace-test-{}", std::process::id()));
        if let Hierarchy::Absent(reason) = &hierarchy {
            tracing::warn!("SKIP: no control groups: {reason}");
            return;
        }
        let limits = Limits { cpu_percent: 150, memory_bytes: 256 << 20, tasks: 64 };
        let groups = hierarchy.make("one", limits).unwrap();
        assert!(!groups.is_empty() && groups.iter().all(|g| g.is_dir()));
        assert_eq!(hierarchy.list(), ["one"]);
        hierarchy.remove("one").unwrap();
        hierarchy.remove("one").unwrap();
        hierarchy.remove_parent().unwrap();
        assert!(groups.iter().all(|g| !g.exists()));
    }
}
