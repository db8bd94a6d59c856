//! Files that the program writes: its log and its pid file.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

#[cfg(unix)]
const NEW_FILE_MODE: u32 = 0o640;
#[cfg(unix)]
const WRITABLE_BY_GROUP_OR_OTHERS: u32 = 0o022;

/// Opens `path` with these options, which must not truncate it. On Unix a new file has mode 0640 or, with a stricter umask, less; one that exists
/// keeps its mode. A link in a folder that others can write to, as `/tmp`, is refused: anyone could have placed it there to have
/// another file written. That holds for symbolic links, those of the folders on the way included, and for hard links.
///
/// # Errors
/// When the file cannot be opened, or its path goes through such a link.
#[cfg(unix)]
pub fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

    const WHERE: &str = "in a folder that others can write to";
    options.mode(NEW_FILE_MODE);
    for part in path.ancestors() {
        if std::fs::symlink_metadata(part).is_ok_and(|found| found.is_symlink()) && is_in_shared_folder(part)
        {
            let what = if part == path { "it".to_owned() } else { part.display().to_string() };
            return Err(io::Error::other(format!("{what} is a symbolic link {WHERE}")));
        }
    }
    if is_in_shared_folder(path) {
        // It may have been placed meanwhile.
        let file = options.custom_flags(libc::O_NOFOLLOW).open(path)?;
        let found = file.metadata()?;
        return match found.is_file() && found.nlink() > 1 {
            true => Err(io::Error::other(format!("it has several names (hard links), and is {WHERE}"))),
            false => Ok(file),
        };
    }
    options.open(path)
}

/// Whether others can write to the folder of this file: its group, everyone, or an owner who is neither this user nor root.
#[cfg(unix)]
fn is_in_shared_folder(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;

    let folder =
        path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
    folder.and_then(|folder| std::fs::metadata(folder).ok()).is_some_and(|folder| {
        let is_own = folder.uid() == 0 || folder.uid() == rustix::process::geteuid().as_raw();
        !is_own || folder.mode() & WRITABLE_BY_GROUP_OR_OTHERS != 0
    })
}

/// Whether `path` is still this file. Another process may have renamed it and begun a new one.
#[cfg(unix)]
pub fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;

    let identity = |found: std::fs::Metadata| (found.dev(), found.ino());
    let at_path = std::fs::metadata(path).map(identity);
    file.metadata().map(identity).is_ok_and(|open| at_path.is_ok_and(|at_path| at_path == open))
}

/// Whether `path` is still this file: where one process does not replace another, nobody else renames it.
#[cfg(not(unix))]
pub fn is_at(_: &File, _: &Path) -> bool {
    true
}

/// Opens `path` with these options.
///
/// # Errors
/// When the file cannot be opened.
#[cfg(not(unix))]
pub fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.open(path)
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_another_process_has_renamed_is_not_at_its_path() {
        let folder = std::env::temp_dir().join(format!("output-file-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("log");
        let file = open(OpenOptions::new().create(true).append(true), &path).unwrap();
        assert!(is_at(&file, &path));
        std::fs::rename(&path, folder.join("log.1")).unwrap();
        assert!(!is_at(&file, &path), "there is none");
        let _new = open(OpenOptions::new().create(true).append(true), &path).unwrap();
        assert!(!is_at(&file, &path), "it is another one");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
