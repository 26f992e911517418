//! A file that appears whole or not at all.

use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The file that `path` names, through symbolic links, with its permissions if it is there already.
/// Renaming onto a device, a pipe or a link would replace it, so only an ordinary file that may be
/// written is one to replace.
fn target_of(path: &Path) -> Result<(PathBuf, Option<std::fs::Permissions>), String> {
    let refuse = |found: &str| Err(expected("a new name or a file that may be replaced")(found));
    match std::fs::symlink_metadata(path) {
        Err(_) => return Ok((path.to_path_buf(), None)),
        Ok(entry) if entry.is_symlink() && !path.exists() => return refuse("a link to nothing"),
        Ok(_) => {}
    }
    let unknown = "a file that may be looked up";
    let target = path.canonicalize().map_err(expected(unknown))?;
    let metadata = std::fs::metadata(&target).map_err(expected(unknown))?;
    if metadata.is_dir() {
        return refuse("a directory");
    }
    if !metadata.is_file() {
        return refuse("a device or a pipe");
    }
    if metadata.permissions().readonly() {
        return refuse("a read-only file");
    }
    Ok((target, Some(metadata.permissions())))
}

/// The folder of a file.
fn directory_of(path: &Path) -> Result<&Path, String> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    if !directory.is_dir() {
        let directory = format!("a directory {}", directory.display());
        return Err(expected(&directory)("none"));
    }
    Ok(directory)
}

/// Whether [`write_whole`] would find a place, for those who want to know before they have the
/// bytes.
#[cfg(feature = "analyze")]
pub(crate) fn check_place(path: &Path) -> Result<(), String> {
    let (path, _) = target_of(path)?;
    directory_of(&path).map(drop)
}

/// A reader never sees a part of the file: it appears under its name once it is complete. The error
/// is what was expected and what was found.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let (path, permissions) = target_of(path)?;
    let directory = directory_of(&path)?;
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // A temporary file is private by default; this one becomes an ordinary file (less umask).
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let writable = format!("a directory {} to write in", directory.display());
    let mut file = builder
        .tempfile_in(directory)
        .map_err(expected(&writable))?;
    let room = format!("room for {} bytes", bytes.len());
    file.write_all(bytes).map_err(expected(&room))?;
    if let Some(permissions) = permissions {
        let kept = file.as_file().set_permissions(permissions);
        kept.map_err(expected("a file whose permissions can be kept"))?;
    }
    let persisted = file.persist(&path);
    persisted.map_err(|error| expected("a name that can be taken")(error.error))?;
    Ok(())
}

fn expected<E: Display>(what: &str) -> impl Fn(E) -> String {
    move |found| format!("expected {what}, found {found}")
}
