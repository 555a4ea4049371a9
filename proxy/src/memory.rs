//! The memory in use, as the kernel tells it: of this process, and of its cgroup where that has a
//! limit (cgroup v2).

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
}

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
        let cgroup = self.cgroup.as_ref().map(|cgroup| in_use(&cgroup.folder));
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

/// The line `0::/path` of `/proc/self/cgroup` is of cgroup v2 (cgroups(7)); a limit further up holds
/// too. In a cgroup namespace the path is `/`, and the file system begins there.
fn tightest(root: &Path, own: &str) -> Option<Cgroup> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let folder = root.join(path);
    folder
        .ancestors()
        .take_while(|folder| folder.starts_with(root))
        .filter_map(|folder| {
            // `max`: none; the root cgroup has no such file.
            let max = fs::read_to_string(folder.join("memory.max")).ok()?;
            let bytes_max = max.trim().parse().ok()?;
            let folder = folder.to_path_buf();
            Some(Cgroup { folder, bytes_max })
        })
        .min_by_key(|cgroup| cgroup.bytes_max)
}

/// What the kernel could not take back at once: the cache of files that were not used lately does
/// not count, as in Kubernetes' working set.
fn in_use(folder: &Path) -> io::Result<u64> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let current = fs::read_to_string(folder.join("memory.current"))?;
    let current: u64 = current.trim().parse().map_err(|_| invalid())?;
    let stat = fs::read_to_string(folder.join("memory.stat"))?;
    let inactive = stat
        .lines()
        .find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse().ok())
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
