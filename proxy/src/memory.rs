//! The memory in use, as the kernel tells it: of this process, and of its cgroup where that has a
//! limit (cgroups(7), v2 and v1).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where the memory of this process is told.
#[derive(Debug)]
pub(crate) struct MemoryUse {
    status: PathBuf,
    cgroup: Option<Cgroup>,
}

/// The tightest cgroup around this process.
#[derive(Debug, PartialEq, Eq)]
struct Cgroup {
    folder: PathBuf,
    bytes_max: u64,
    files: &'static Files,
}

/// What a version of cgroups calls its files, and where its hierarchy is below the file system.
#[derive(Debug, PartialEq, Eq)]
struct Files {
    below: &'static str,
    max: &'static str,
    current: &'static str,
    /// In `memory.stat`, this cgroup and all below it.
    inactive: &'static str,
}

const V2: &Files = &Files {
    below: "",
    max: "memory.max",
    current: "memory.current",
    inactive: "inactive_file ",
};
const V1: &Files = &Files {
    below: "memory",
    max: "memory.limit_in_bytes",
    current: "memory.usage_in_bytes",
    inactive: "total_inactive_file ",
};
/// Where v1 has no limit its file says the largest number of whole pages; nobody has so much.
const UNLIMITED_BYTES: u64 = 1 << 60;

impl MemoryUse {
    /// Of this process.
    pub(crate) fn of_this_process() -> Self {
        Self::below(Path::new("/proc/self"), Path::new("/sys/fs/cgroup"))
    }

    pub(crate) fn below(process: &Path, cgroups: &Path) -> Self {
        let own = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
        Self {
            status: process.join("status"),
            cgroup: tightest(cgroups, &own),
        }
    }

    /// What the cgroup allows.
    pub(crate) fn bytes_max(&self) -> Option<u64> {
        self.cgroup.as_ref().map(|cgroup| cgroup.bytes_max)
    }

    /// What is in use: the resident memory, or that of the cgroup if it is more.
    ///
    /// A cgroup without a limit may hold other programs too, and says nothing about this one.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn used_bytes(&self) -> io::Result<u64> {
        let resident = resident(&fs::read_to_string(&self.status)?)
            .ok_or_else(|| io::Error::other("no VmRSS in the status of the process"))?;
        let cgroup = self.cgroup.as_ref().map(in_use);
        Ok(resident.max(cgroup.transpose()?.unwrap_or(0)))
    }
}

/// `VmRSS:     1234 kB` of `/proc/self/status` (proc_pid_status(5)): in units of 1024.
fn resident(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The tightest limit of either version: a limit further up holds too. In a cgroup namespace the
/// path is `/`, and in a container without one it may not be there: the file system begins at the
/// container's own.
fn tightest(root: &Path, own: &str) -> Option<Cgroup> {
    let both = own.lines().filter_map(|line| {
        // cgroups(7): hierarchy-ID:controller-list:cgroup-path.
        let mut parts = line.splitn(3, ':');
        let (id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let path = path.strip_prefix('/')?;
        if id == "0" && controllers.is_empty() {
            Some((V2, path))
        } else {
            let is_of_memory = controllers.split(',').any(|one| one == "memory");
            is_of_memory.then_some((V1, path))
        }
    });
    both.filter_map(|(files, path)| tightest_of(&root.join(files.below), path, files))
        .min_by_key(|cgroup| cgroup.bytes_max)
}

fn tightest_of(root: &Path, path: &str, files: &'static Files) -> Option<Cgroup> {
    let folder = root.join(path);
    folder
        .ancestors()
        .take_while(|folder| folder.starts_with(root))
        .filter_map(|folder| {
            // `max`: none; the root cgroup of v2 has no such file.
            let max = fs::read_to_string(folder.join(files.max)).ok()?;
            let bytes_max = max.trim().parse().ok()?;
            (bytes_max < UNLIMITED_BYTES).then(|| Cgroup {
                folder: folder.to_path_buf(),
                bytes_max,
                files,
            })
        })
        .min_by_key(|cgroup| cgroup.bytes_max)
}

/// What the kernel could not take back at once: the cache of files that were not used lately does
/// not count, as in Kubernetes' working set.
fn in_use(cgroup: &Cgroup) -> io::Result<u64> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let Cgroup { folder, files, .. } = cgroup;
    let current = fs::read_to_string(folder.join(files.current))?;
    let current: u64 = current.trim().parse().map_err(|_| invalid())?;
    let stat = fs::read_to_string(folder.join("memory.stat"))?;
    let inactive = stat
        .lines()
        .find_map(|line| line.strip_prefix(files.inactive)?.trim().parse().ok())
        .unwrap_or(0);
    Ok(current.saturating_sub(inactive))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tzeugma\nVmSize:\t  999 kB\nVmRSS:\t    2048 kB\nThreads:\t4\n";

    fn write(at: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = at.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn the_tightest_cgroup_around_the_process_counts_without_its_file_cache() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            &[
                ("proc/cgroup", "12:memory:/v1\n0::/pod/container\n"),
                ("proc/status", STATUS),
                ("cg/pod/memory.max", "1000000\n"),
                ("cg/pod/memory.current", "900000\n"),
                ("cg/pod/memory.stat", "anon 1\nfile 2\n"),
                ("cg/pod/container/memory.max", "max\n"),
            ],
        );
        let used = || MemoryUse::below(&root.path().join("proc"), &root.path().join("cg"));
        assert_eq!(used().bytes_max(), Some(1_000_000));
        assert_eq!(
            used().used_bytes().unwrap(),
            2 << 20,
            "the process holds more"
        );
        write(
            root.path(),
            &[
                ("cg/pod/container/memory.max", "500000\n"),
                ("cg/pod/container/memory.current", "9000000\n"),
                (
                    "cg/pod/container/memory.stat",
                    "inactive_file 1000000\nactive_file 7\n",
                ),
            ],
        );
        assert_eq!(used().bytes_max(), Some(500_000));
        assert_eq!(used().used_bytes().unwrap(), 8_000_000);
        write(root.path(), &[("cg/pod/container/memory.current", "many")]);
        assert!(used().used_bytes().is_err());
    }

    #[test]
    fn a_limit_of_cgroup_v1_counts_as_well() {
        let root = tempfile::tempdir().unwrap();
        let used = || MemoryUse::below(&root.path().join("proc"), &root.path().join("cg"));
        write(
            root.path(),
            &[
                // Hybrid, as systemd has it: v2 without controllers.
                (
                    "proc/cgroup",
                    "5:cpu,cpuacct:/pod\n4:hugetlb,memory:/pod/it\n0::/pod\n",
                ),
                ("proc/status", STATUS),
                // No limit: PAGE_COUNTER_MAX in bytes.
                (
                    "cg/memory/pod/memory.limit_in_bytes",
                    "9223372036854771712\n",
                ),
            ],
        );
        assert_eq!(used().bytes_max(), None);
        write(
            root.path(),
            &[
                ("cg/memory/pod/it/memory.limit_in_bytes", "50000000\n"),
                ("cg/memory/pod/it/memory.usage_in_bytes", "9000000\n"),
                (
                    "cg/memory/pod/it/memory.stat",
                    "inactive_file 7\ntotal_inactive_file 1000000\n",
                ),
            ],
        );
        assert_eq!(used().bytes_max(), Some(50_000_000));
        assert_eq!(used().used_bytes().unwrap(), 8_000_000);
        // In a container without a namespace the path is the host's, and the limit is at the top.
        write(
            root.path(),
            &[
                ("proc/cgroup", "4:memory:/kubepods/burstable/1234\n"),
                ("cg/memory/memory.limit_in_bytes", "40000000\n"),
            ],
        );
        assert_eq!(used().bytes_max(), Some(40_000_000));
    }

    #[test]
    fn without_a_limit_the_process_alone_counts() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            &[
                ("proc/cgroup", "0::/\n"),
                ("proc/status", STATUS),
                ("cg/memory.current", "9000000000\n"),
            ],
        );
        let used = MemoryUse::below(&root.path().join("proc"), &root.path().join("cg"));
        assert_eq!(
            (used.bytes_max(), used.used_bytes().unwrap()),
            (None, 2 << 20)
        );
        let own = MemoryUse::of_this_process();
        assert!(own.used_bytes().unwrap() > 100_000);
    }

    #[test]
    fn odd_texts_are_no_numbers() {
        for status in [
            "",
            "VmRSS:",
            "VmRSS: kB",
            "VmRSS:\t12 MB",
            "VmRSS:\t99999999999999999999 kB",
        ] {
            assert_eq!(resident(status), None, "{status}");
        }
        assert_eq!(tightest(Path::new("/nowhere"), "0::/a"), None);
        assert_eq!(tightest(Path::new("/nowhere"), ""), None);
    }
}
