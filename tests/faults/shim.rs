//! The wall clock and the resolver of a sidecar, in the hands of a test: see `shim.c`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use tokio::process::Command;

/// A compiled shim, for one sidecar after the other.
pub(crate) struct Shim {
    folder: tempfile::TempDir,
    told: File,
}

impl Shim {
    /// Compiles it. A C compiler is there: SQLite needs one.
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/shim.c");
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let mut compiling = Command::new(compiler);
        compiling
            .args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"])
            .arg(folder.path().join("shim.so"))
            .args([source, "-ldl"]);
        assert!(compiling.status().await.unwrap().success());
        let told = File::create(folder.path().join("told")).unwrap();
        told.write_all_at(&[0; 16], 0).unwrap();
        Self { folder, told }
    }

    /// Has a process started with it.
    pub(crate) fn preload(&self, command: &mut Command) {
        let path = |name: &str| -> PathBuf { self.folder.path().join(name) };
        command
            .env("LD_PRELOAD", path("shim.so"))
            .env("SHIM", path("told"));
    }

    /// Moves the wall clock so far from the right time, at once.
    pub(crate) fn set_clock(&self, seconds: i64) {
        self.told.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    }

    /// Lets names fail to resolve, or resolve.
    pub(crate) fn fail_names(&self, fail: bool) {
        let told = i64::from(fail).to_ne_bytes();
        self.told.write_all_at(&told, 8).unwrap();
    }
}
