//! The file that `--out` names: whole, or as it was.

use crate::{CASE, fail, succeed, text};
use std::fs;
use tempfile::TempDir;

#[test]
fn a_failure_leaves_no_file_and_touches_none() {
    let directory = TempDir::new().unwrap();
    let out = directory.path().join("out.safetensors");
    fs::write(&out, "precious").unwrap();
    fail(&["step", CASE, "--k", "2", "--out", text(&out)]);
    assert_eq!(fs::read_to_string(&out).unwrap(), "precious");
    succeed(&["step", CASE, "--out", text(&out)]);
    assert!(fs::metadata(&out).unwrap().len() > 1000);

    let missing = directory.path().join("missing/out.safetensors");
    let message = fail(&["step", CASE, "--out", text(&missing)]);
    assert!(message.contains("expected a directory ") && message.contains("found none"));
    let taken = directory.path().join("taken");
    fs::create_dir(&taken).unwrap();
    let message = fail(&["step", CASE, "--out", text(&taken)]);
    assert!(
        message
            .ends_with("expected a new name or a file that may be replaced, found a directory\n")
    );
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
}

#[test]
fn an_output_never_replaces_an_input() {
    let directory = TempDir::new().unwrap();
    let case = directory.path().join("case.safetensors");
    fs::copy(CASE, &case).unwrap();
    let indirect = directory
        .path()
        .join("../")
        .join(directory.path().file_name().unwrap());
    for out in [case.clone(), indirect.join("case.safetensors")] {
        let message = fail(&["step", text(&case), "--out", text(&out)]);
        let (input, out) = (text(&case), text(&out));
        let expected =
            format!("--out: expected another file than the input {input}, found {out}\n");
        assert!(message.ends_with(&expected), "{message}");
    }
    assert_eq!(fs::read(&case).unwrap(), fs::read(CASE).unwrap());
}

#[cfg(unix)]
#[test]
fn an_output_replaces_ordinary_files_only() {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    let pipe = path("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    fail(&["step", CASE, "--out", text(&pipe)]);
    assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());

    let locked = path("locked");
    fs::write(&locked, "precious").unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o444)).unwrap();
    fail(&["step", CASE, "--out", text(&locked)]);
    assert_eq!(fs::read_to_string(&locked).unwrap(), "precious");

    let (link, target) = (path("link"), path("target"));
    symlink(&target, &link).unwrap();
    fail(&["step", CASE, "--out", text(&link)]);
    fs::write(&target, "").unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o640)).unwrap();
    succeed(&["step", CASE, "--out", text(&link)]);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    let written = fs::metadata(&target).unwrap();
    assert!(written.len() > 1000);
    assert_eq!(written.permissions().mode() & 0o777, 0o640);
}

#[cfg(unix)]
#[test]
fn a_read_only_directory_is_an_error() {
    use std::os::unix::fs::PermissionsExt;
    let directory = TempDir::new().unwrap();
    let locked = directory.path().join("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o555)).unwrap();
    let probe = locked.join("probe");
    let out = locked.join("out.safetensors");
    if fs::write(&probe, "").is_ok() {
        return; // root writes anywhere
    }
    let message = fail(&["step", CASE, "--out", text(&out)]);
    assert!(
        message.contains(text(&out)) && message.contains("to write in, found"),
        "{message}"
    );
    assert_eq!(fs::read_dir(&locked).unwrap().count(), 0);
}
