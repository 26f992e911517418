//! Which files of a folder hold training rollouts.

use super::formats::compressed;
use super::input::is_standard_input;
use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The files to read, and what the folders have besides.
#[derive(Default)]
pub(super) struct Files {
    pub(super) inputs: Vec<PathBuf>,
    /// Why so many files of the folders are not read.
    pub(super) not_read: Vec<(usize, &'static str)>,
    /// Files that were named more than once, or have several names, and are read once.
    pub(super) named_twice: usize,
}

/// The files that `paths` name, those of a folder in the order of their numbers.
///
/// # Errors
/// [`Error::File`] if a folder cannot be read or has no rollouts.
pub(super) fn find(paths: &[PathBuf]) -> Result<Files> {
    let mut files = Files::default();
    let mut seen = BTreeSet::new();
    for path in paths {
        let found = if !is_standard_input(path) && path.is_dir() {
            of_folder(path, &mut files.not_read)?
        } else {
            vec![path.clone()]
        };
        for path in found {
            // What is not there is refused when it is opened.
            if node(&path).is_none_or(|node| seen.insert(node)) {
                files.inputs.push(path);
            } else {
                files.named_twice += 1;
            }
        }
    }
    Ok(files)
}

/// The first of the inputs that is the same file as `path`.
pub(super) fn same_file(path: &Path, inputs: Vec<PathBuf>) -> Option<PathBuf> {
    let target = node(path)?;
    inputs
        .into_iter()
        .find(|input| node(input).as_ref() == Some(&target))
}

/// What tells a file or folder from all others: device and number.
#[cfg(unix)]
type Node = (u64, u64);

/// As far as names tell.
#[cfg(not(unix))]
type Node = PathBuf;

/// What the path leads to, if anything.
#[cfg(unix)]
fn node(path: &Path) -> Option<Node> {
    use std::os::unix::fs::MetadataExt;
    let path = if is_standard_input(path) {
        Path::new("/dev/stdin")
    } else {
        path
    };
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn node(path: &Path) -> Option<Node> {
    path.canonicalize().ok()
}

/// The rollouts of a folder.
fn of_folder(folder: &Path, not_read: &mut Vec<(usize, &'static str)>) -> Result<Vec<PathBuf>> {
    let mut walk = Walk::default();
    walk.folder(folder)?;
    let num_others = walk.found.len() + walk.skipped.values().sum::<usize>();
    let packed = walk.found.iter().find_map(|path| {
        let program = unpacks(path)?;
        Some(Error::file(path.display(), compressed(program)))
    });
    let chosen = choose(walk.found, not_read);
    if chosen.is_empty() {
        let found = format!("none ({num_others} other files)");
        let message = format!("expected .jsonl, .csv or .parquet files, found {found}");
        return Err(packed.unwrap_or_else(|| Error::file(folder.display(), message)));
    }
    let skipped = walk.skipped.into_iter();
    not_read.extend(skipped.map(|(what, count)| (count, what)));
    Ok(chosen)
}

/// The program that unpacks a file with this name.
fn unpacks(path: &Path) -> Option<&'static str> {
    match path.extension()?.to_str()? {
        "gz" => Some("zcat"),
        "zst" => Some("zstdcat"),
        "bz2" => Some("bzcat"),
        "xz" => Some("xzcat"),
        _ => None,
    }
}

const HIDDEN: &str = "(hidden; a folder counts as one)";
const DANGLING: &str = "(links to nothing)";
const NO_FILES: &str = "(pipes, sockets or devices)";

/// What is found below a folder.
#[derive(Default)]
struct Walk {
    found: Vec<PathBuf>,
    /// How many of what kind are no candidates.
    skipped: BTreeMap<&'static str, usize>,
    /// Links may lead to a folder again, or around in a loop.
    visited: BTreeSet<Node>,
}

impl Walk {
    fn folder(&mut self, folder: &Path) -> Result<()> {
        if !node(folder).is_none_or(|node| self.visited.insert(node)) {
            return Ok(());
        }
        let unreadable = |error: std::io::Error| {
            let message = format!("expected a folder, found {error}");
            Error::file(folder.display(), message)
        };
        let mut paths = vec![];
        for entry in std::fs::read_dir(folder).map_err(unreadable)? {
            paths.push(entry.map_err(unreadable)?.path());
        }
        // A link `latest` would hide the number of the folder that it leads to.
        let is_linked_folder = |path: &Path| path.is_symlink() && path.is_dir();
        paths.sort_by_cached_key(|path| (is_linked_folder(path), natural(path)));
        paths.into_iter().try_for_each(|path| self.entry(path))
    }

    fn entry(&mut self, path: PathBuf) -> Result<()> {
        let is_hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes()[0] == b'.');
        let what = match path.metadata() {
            _ if is_hidden => HIDDEN,
            Ok(metadata) if metadata.is_dir() => return self.folder(&path),
            Ok(metadata) if !metadata.is_file() => NO_FILES,
            Err(_) if path.is_symlink() => DANGLING,
            _ => {
                self.found.push(path);
                return Ok(());
            }
        };
        *self.skipped.entry(what).or_default() += 1;
        Ok(())
    }
}

/// A key by which `2.jsonl` comes before `10.jsonl`.
fn natural(path: &Path) -> Vec<(String, u64)> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut parts = vec![];
    let mut rest: &str = &name;
    while !rest.is_empty() {
        let text = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (text, tail) = rest.split_at(text);
        let digits = tail
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (digits, tail) = tail.split_at(digits);
        parts.push((text.to_string(), digits.parse().unwrap_or(u64::MAX)));
        rest = tail;
    }
    parts
}

/// What a trainer writes, beside other files, into the folder that it is told to use.
struct Habit {
    is_rollouts: fn(&Path) -> bool,
    others: &'static str,
}

const HABITS: [Habit; 5] = [
    Habit {
        is_rollouts: |path| ends_with(path, &["train", "all", "traces.jsonl"]),
        others: "beside train/all/traces.jsonl (evaluation, or the part of them that trained)",
    },
    Habit {
        is_rollouts: |path| ends_with(path, &["train_rollouts.jsonl"]),
        others: "beside train_rollouts.jsonl",
    },
    Habit {
        is_rollouts: |path| is_numbered(path, "train_data_step", "jsonl"),
        others: "beside train_data_step*.jsonl",
    },
    Habit {
        is_rollouts: |path| is_numbered(path, "completions_", "parquet"),
        others: "beside completions_*.parquet",
    },
    Habit {
        is_rollouts: |path| is_numbered(path, "", "jsonl"),
        others: "beside {step}.jsonl",
    },
];

fn choose(found: Vec<PathBuf>, not_read: &mut Vec<(usize, &'static str)>) -> Vec<PathBuf> {
    let num_found = found.len();
    let habit = HABITS
        .iter()
        .find(|habit| found.iter().any(|path| (habit.is_rollouts)(path)));
    let is_rollouts = habit.map_or(is_data as fn(&Path) -> bool, |habit| habit.is_rollouts);
    let chosen: Vec<_> = found.into_iter().filter(|path| is_rollouts(path)).collect();
    let num_others = num_found - chosen.len();
    if num_others > 0 && !chosen.is_empty() {
        let others = habit.map_or("that are neither .jsonl, .csv nor .parquet", |habit| {
            habit.others
        });
        not_read.push((num_others, others));
    }
    chosen
}

fn is_data(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    matches!(
        extension,
        Some("jsonl" | "ndjson" | "csv" | "tsv" | "parquet")
    )
}

fn ends_with(path: &Path, parts: &[&str]) -> bool {
    path.ends_with(parts.iter().collect::<PathBuf>())
}

fn is_numbered(path: &Path, prefix: &str, extension: &str) -> bool {
    let stem = path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or_default();
    let number = stem.strip_prefix(prefix).unwrap_or_default();
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number && path.extension().is_some_and(|found| found == extension)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tempfile::TempDir;

    fn found(names: &[&str]) -> (Vec<String>, Vec<(usize, &'static str)>) {
        let folder = TempDir::new().unwrap();
        for name in names {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let files = find(&[folder.path().to_path_buf()]).unwrap();
        let name = |path: &PathBuf| {
            let path = path.strip_prefix(folder.path()).unwrap();
            path.to_str().unwrap().to_string()
        };
        (files.inputs.iter().map(name).collect(), files.not_read)
    }

    #[test]
    fn the_rollouts_of_each_trainer_are_found_in_order() {
        for (names, expected, num_others) in [
            (
                &["10.jsonl", "2.jsonl", "1.jsonl", "notes.txt", ".hidden"] as &[&str],
                &["1.jsonl", "2.jsonl", "10.jsonl"] as &[&str],
                2,
            ),
            (
                &["exp_1/train_data_step2.jsonl", "exp_1/val_data_step2.jsonl"],
                &["exp_1/train_data_step2.jsonl"],
                1,
            ),
            (
                &["completions/completions_00002.parquet", "config.json"],
                &["completions/completions_00002.parquet"],
                1,
            ),
            (
                &[
                    "step_10/train/all/traces.jsonl",
                    "step_9/train/all/traces.jsonl",
                    "step_9/train/effective/traces.jsonl",
                    "step_9/eval/all/traces.jsonl",
                ],
                &[
                    "step_9/train/all/traces.jsonl",
                    "step_10/train/all/traces.jsonl",
                ],
                2,
            ),
            (
                &["step_1/train_rollouts.jsonl", "step_1/eval_rollouts.jsonl"],
                &["step_1/train_rollouts.jsonl"],
                1,
            ),
            (&["b.jsonl", "a.jsonl"], &["a.jsonl", "b.jsonl"], 0),
        ] {
            let (inputs, not_read) = found(names);
            assert_eq!(inputs, expected);
            assert_eq!(not_read.iter().map(|(n, _)| n).sum::<usize>(), num_others);
        }
    }

    #[test]
    fn a_file_is_read_once() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("1.jsonl");
        fs::write(&path, "").unwrap();
        let other = folder.path().join(".").join("1.jsonl");
        let files = find(&[path, other, folder.path().to_path_buf()]).unwrap();
        assert_eq!((files.inputs.len(), files.named_twice), (1, 2));
    }

    #[test]
    fn a_folder_without_rollouts_is_refused() {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("notes.txt"), "").unwrap();
        let error = find(&[folder.path().to_path_buf()])
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("found none (1 other files)"), "{error}");
    }
}
