//! Files that the program writes: its log and its pid file.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

#[cfg(unix)]
const NEW_FILE_MODE: u32 = 0o640;
#[cfg(unix)]
const WRITABLE_BY_GROUP_OR_OTHERS: u32 = 0o022;

/// Opens `path` with these options. On Unix a new file has mode 0640 or, with a stricter umask, less; one that exists
/// keeps its mode. In a folder that its group or others can write to, as `/tmp`, a symbolic link is refused: anyone
/// could have placed it there to have another file written.
///
/// # Errors
/// When the file cannot be opened, or is such a link.
#[cfg(unix)]
pub fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

    options.mode(NEW_FILE_MODE);
    let folder = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return options.open(path),
    };
    if fs::metadata(folder)?.mode() & WRITABLE_BY_GROUP_OR_OTHERS == 0 {
        return options.open(path);
    }
    options.custom_flags(libc::O_NOFOLLOW).open(path).map_err(|error| {
        // Systems have different error codes for it.
        match fs::symlink_metadata(path) {
            Ok(found) if found.is_symlink() => {
                io::Error::other("it is a symbolic link in a folder that others can write to")
            }
            _ => error,
        }
    })
}

/// Opens `path` with these options.
///
/// # Errors
/// When the file cannot be opened.
#[cfg(not(unix))]
pub fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.open(path)
}
