//! What a process uses, as Linux tells it.

use std::fmt;

/// The most memory that the sidecar may hold.
pub(crate) const MEMORY_BOUND: Memory = Memory(64 << 20);

/// Bytes of memory that are really there (the resident set).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Memory(u64);

/// What the process holds now.
pub(crate) fn memory(pid: u32) -> Memory {
    read(pid, "VmRSS:")
}

/// The most that it ever held, or held since [`forget_peak`].
pub(crate) fn peak_memory(pid: u32) -> Memory {
    read(pid, "VmHWM:")
}

/// Lets the peak begin anew.
pub(crate) fn forget_peak(pid: u32) {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
}

/// How many files and sockets it has open.
pub(crate) fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count()
}

/// Lets this process, and those that it starts from now on, open so many files and sockets.
/// False where the machine does not let them.
pub(crate) fn allow_open_files(count: u64) -> bool {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let is_enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= count);
    let more = Rlimit {
        current: Some(count),
        maximum,
    };
    is_enough(current) || (is_enough(maximum) && setrlimit(Resource::Nofile, more).is_ok())
}

fn read(pid: u32, name: &str) -> Memory {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Memory(kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap() << 10)
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0 >> 20)
    }
}
