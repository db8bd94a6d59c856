//! Notices that a file has changed, by polling its metadata. This works on every system, also for files that are replaced by
//! rename, mounted, or on a network share, and each poll takes about a microsecond.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How often the file is polled.
pub(crate) const INTERVAL: Duration = Duration::from_millis(500);

/// The metadata that changes when a file is written or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

/// A file that is watched.
#[derive(Debug)]
pub(crate) struct FileWatch {
    path: PathBuf,
    known: Option<FileStamp>,
    changed: bool,
}

impl FileWatch {
    pub(crate) fn new(path: PathBuf) -> Self {
        let known = stamp(&path);
        Self { path, known, changed: false }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// True once for every change, one poll after it was noticed, so that the file is not read while it is being written.
    pub(crate) fn has_changed(&mut self) -> bool {
        let now = stamp(&self.path);
        if now != self.known {
            self.known = now;
            self.changed = true;
            return false;
        }
        std::mem::take(&mut self.changed) && now.is_some()
    }
}

fn stamp(path: &PathBuf) -> Option<FileStamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some(FileStamp { modified: metadata.modified().ok(), length: metadata.len(), inode: inode(&metadata) })
}

#[cfg(unix)]
fn inode(metadata: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn inode(_: &std::fs::Metadata) -> u64 {
    0
}
