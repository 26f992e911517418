//! What is found in folders, whatever links and other things they hold.

use crate::{Files, group, lines, report_of};
use qae::analyze::{Options, Report};
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

fn good() -> String {
    lines(&group("a", &[1.0, 0.0, 0.0, 0.0]))
}

fn folder(names: &[&str]) -> Files {
    let good = good();
    let files: Vec<_> = names.iter().map(|name| (*name, good.as_bytes())).collect();
    Files::new(&files)
}

/// The notes of a kind.
fn notes(report: &Report, kind: &str) -> Vec<String> {
    let warnings = report.warnings.iter();
    let notes = warnings.filter(|warning| warning.kind == kind);
    notes.map(|warning| warning.message.clone()).collect()
}

#[test]
fn a_file_with_two_names_is_read_once() {
    let files = folder(&["1.jsonl"]);
    let path = files.0.path();
    fs::hard_link(path.join("1.jsonl"), path.join("2.jsonl")).unwrap();
    symlink("1.jsonl", path.join("3.jsonl")).unwrap();
    let report = files.report(&Options::default()).unwrap();
    assert_eq!((report.files, report.responses), (1, 4));
    let expected = ["2 files named more than once, read once"];
    assert_eq!(notes(&report, "named_twice"), expected);
}

#[test]
fn links_around_in_a_loop_end() {
    let files = folder(&["1.jsonl", "deep/2.jsonl"]);
    for name in ["a", "b", "c", "deep/a", "deep/b", "deep/c"] {
        let target = if name.contains('/') { ".." } else { "." };
        symlink(target, files.0.path().join(name)).unwrap();
    }
    let report = files.report(&Options::default()).unwrap();
    assert_eq!((report.files, report.responses), (2, 8));
}

/// The step stands in the folder's name.
#[test]
fn a_link_to_a_folder_does_not_hide_its_number() {
    let row = "{\"input\": \"a\", \"output\": \"b\", \"score\": 1}\n";
    let files = Files::new(&[("step_7/rollouts.jsonl", row.as_bytes())]);
    let path = files.0.path();
    symlink("step_7", path.join("latest")).unwrap();
    let report = files.report(&Options::default()).unwrap();
    assert_eq!((report.files, report.by_step[0].step), (1, Some(7)));
}

#[test]
fn folders_may_be_deep() {
    let name = format!("{}1.jsonl", "x/".repeat(40));
    let report = folder(&[&name]).report(&Options::default()).unwrap();
    assert_eq!(report.responses, 4);
}

/// A socket stands for all that would block.
#[test]
fn what_is_no_file_is_counted_and_not_opened() {
    let files = folder(&["1.jsonl", ".hidden/3.jsonl", ".2.jsonl"]);
    let path = files.0.path();
    let _socket = UnixListener::bind(path.join("4.jsonl")).unwrap();
    symlink("nothing", path.join("5.jsonl")).unwrap();
    symlink("6.jsonl", path.join("6.jsonl")).unwrap();
    let report = files.report(&Options::default()).unwrap();
    assert_eq!((report.files, report.responses), (1, 4));
    assert_eq!(
        notes(&report, "files_not_read"),
        [
            "2 files not read (hidden; a folder counts as one)",
            "2 files not read (links to nothing)",
            "1 file not read (pipes, sockets or devices)",
        ]
    );
    let error = report_of(&[path.join("5.jsonl")], &Options::default()).unwrap_err();
    assert!(error.contains("5.jsonl: expected a file"), "{error}");
}

#[test]
fn compressed_files_are_named_with_what_unpacks_them() {
    for (name, program) in [
        ("1.jsonl.gz", "zcat"),
        ("1.jsonl.zst", "zstdcat"),
        ("1.jsonl.bz2", "bzcat"),
        ("1.jsonl.xz", "xzcat"),
    ] {
        let error = folder(&[name, "notes.txt"])
            .report(&Options::default())
            .unwrap_err();
        let part = format!("{name}: expected text or parquet, found compressed data");
        assert!(error.contains(&part), "{error}");
        assert!(error.contains(&format!("<({program} FILE)")), "{error}");
    }
}
