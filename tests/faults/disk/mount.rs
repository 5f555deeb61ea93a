//! A small real file system: ext4 in a file, or where there are no loop devices a tmpfs of the
//! same size.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::report::Report;

/// Room for some backlog and whatever the sidecar sets aside.
const MEGABYTES: u64 = 192;

/// What fills the disk: another program's file.
const FILLER: &str = "filler";

/// A mounted one; unmounted when it is dropped.
pub(crate) struct Disk {
    image: TempDir,
}

impl Disk {
    /// Mounts it; where that is not possible the report says so.
    pub(crate) fn mount(report: &mut Report) -> Option<Self> {
        let image = tempfile::tempdir().unwrap();
        let (file, at) = (image.path().join("image"), image.path().join("mnt"));
        std::fs::create_dir(&at).unwrap();
        File::create(&file)
            .and_then(|image| image.set_len(MEGABYTES << 20))
            .unwrap();
        let ext4 = succeeds(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&file))
            && succeeds(
                Command::new("mount")
                    .args(["-o", "loop"])
                    .arg(&file)
                    .arg(&at),
            );
        let size = format!("size={MEGABYTES}m");
        let mut tmpfs = Command::new("mount");
        tmpfs.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&at);
        if !ext4 && !succeeds(&mut tmpfs) {
            report.skip("no file system can be mounted, neither ext4 nor tmpfs".to_owned());
            return None;
        }
        Some(Self { image })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.image.path().join("mnt")
    }

    /// Fills it to the last byte, as another program does that then fails: what the sidecar
    /// gives up from then on is the sidecar's.
    pub(crate) fn fill(&self) {
        let mut filler = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path().join(FILLER))
            .unwrap();
        while filler.write_all(&vec![1; 1 << 20]).is_ok() {}
        for (size, most) in [(4096, 256), (1, 4096)] {
            let mut writes = (0..most).map(|_| filler.write_all(&vec![1; size]));
            writes.any(|written| written.is_err());
        }
    }

    /// Gives the space back.
    pub(crate) fn free(&self) {
        std::fs::remove_file(self.path().join(FILLER)).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: some process may still have a file open.
        Command::new("umount")
            .arg("-l")
            .arg(self.path())
            .status()
            .ok();
    }
}

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}
