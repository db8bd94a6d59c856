//! Files that the program writes: its log and its pid file.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

/// Opens `path` with these options. On Unix a new file has mode 0640 or, with a stricter umask, less; one that exists
/// keeps its mode. In a folder that its group or others can write to, as `/tmp`, a symbolic link is refused: anyone
/// could have placed it there to have another file written.
///
/// # Errors
/// When the file cannot be opened, or is such a link.
pub fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    #[cfg(unix)]
    return unix::open(options, path);
    #[cfg(not(unix))]
    options.open(path)
}

#[cfg(unix)]
mod unix {
    use std::fs::{self, File, OpenOptions};
    use std::io;
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
    use std::path::Path;

    const NEW_FILE_MODE: u32 = 0o640;
    const WRITABLE_BY_GROUP_OR_OTHERS: u32 = 0o022;

    pub(super) fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
        options.mode(NEW_FILE_MODE);
        if !is_in_shared_folder(path)? {
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

    fn is_in_shared_folder(path: &Path) -> io::Result<bool> {
        let folder = match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => return Ok(false),
        };
        Ok(fs::metadata(folder)?.mode() & WRITABLE_BY_GROUP_OR_OTHERS != 0)
    }
}
