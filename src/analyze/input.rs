//! A file to be read, and the files of a folder.

use super::chunks::MAX_LINE;
use crate::error::{Error, Result};
use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// What is read of a file at once to tell its format.
const HEAD_BYTES: u64 = 64 << 10;

/// Where lines are left out, the first good one tells the format: not more than this is kept until
/// it comes.
pub(super) const MAX_HEAD: usize = 4 * MAX_LINE;

/// Whether a path is the one that stands for standard input.
pub(super) fn is_standard_input(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// A file, a pipe or a device.
pub(super) struct Input {
    pub(super) path: PathBuf,
    /// In bytes; 0 for a pipe, whose end nobody knows.
    pub(super) size: u64,
    /// The number in its name or in that of a folder above it: the step where rows have none.
    pub(super) step: Option<i64>,
    is_pipe: bool,
    /// Cannot be opened twice.
    pipe: Mutex<Option<Box<dyn Read + Send>>>,
    head: Vec<u8>,
    is_head_all: bool,
}

impl Input {
    pub(super) fn new(path: PathBuf) -> Result<Self> {
        let mut input = Self {
            size: 0,
            is_pipe: true,
            step: step_of(&path),
            path,
            pipe: Mutex::new(None),
            head: vec![],
            is_head_all: false,
        };
        if is_standard_input(&input.path) {
            input.pipe = Mutex::new(Some(Box::new(std::io::stdin())));
        } else {
            let file = File::open(&input.path).map_err(|error| input.unreadable(&error))?;
            let metadata = file.metadata().map_err(|error| input.unreadable(&error))?;
            if metadata.is_file() {
                input.size = metadata.len();
                input.is_pipe = false;
            } else {
                input.pipe = Mutex::new(Some(Box::new(file)));
            }
        }
        input.extend_head(MAX_LINE)?;
        Ok(input)
    }

    /// Reads on until there is another whole line that is not blank, or more than `limit` bytes.
    pub(super) fn extend_head(&mut self, limit: usize) -> Result<()> {
        let mut head = std::mem::take(&mut self.head);
        let pipe = self.pipe.lock().ok().and_then(|mut pipe| pipe.take());
        let mut reader = match pipe {
            Some(pipe) => pipe,
            None => {
                let mut file = self.file()?;
                let start = file.seek(SeekFrom::Start(head.len() as u64));
                start.map_err(|error| self.unreadable(&error))?;
                Box::new(file)
            }
        };
        let is_all = read_line(&mut *reader, limit, &mut head);
        self.is_head_all = is_all.map_err(|error| self.unreadable(&error))?;
        self.head = head;
        if self.is_pipe {
            self.pipe = Mutex::new(Some(reader));
        }
        Ok(())
    }

    /// The start of the file, at least its first line if that is not too long.
    pub(super) fn head(&self) -> &[u8] {
        &self.head
    }

    /// Whether the head is all that there is.
    pub(super) fn is_head_all(&self) -> bool {
        self.is_head_all
    }

    /// Gives up the memory of [`Self::head`].
    pub(super) fn forget_head(&mut self) {
        if !self.is_pipe {
            self.head = vec![];
        }
    }

    /// Everything from the start. A pipe can be read once.
    pub(super) fn open(&self) -> Result<Box<dyn Read + Send>> {
        let pipe = self.pipe.lock().ok().and_then(|mut pipe| pipe.take());
        match pipe {
            Some(pipe) => Ok(Box::new(Cursor::new(self.head.clone()).chain(pipe))),
            None => Ok(Box::new(self.file()?)),
        }
    }

    /// The file, for formats that need to move in it.
    pub(super) fn file(&self) -> Result<File> {
        if self.is_pipe {
            let message = "expected a file, which parquet needs, found what can be read only once";
            return Err(Error::file(self.name(), message));
        }
        File::open(&self.path).map_err(|error| self.unreadable(&error))
    }

    pub(super) fn name(&self) -> String {
        if is_standard_input(&self.path) {
            return "standard input".to_string();
        }
        self.path.display().to_string()
    }

    pub(super) fn unreadable(&self, error: &std::io::Error) -> Error {
        Error::file(self.name(), format!("expected a file, found {error}"))
    }
}

/// Reads until what is added to `head` has a whole line that is not blank, or `head` has more than
/// `limit` bytes; whether the file ends there.
fn read_line(reader: &mut dyn Read, limit: usize, head: &mut Vec<u8>) -> std::io::Result<bool> {
    let mut is_blank = true;
    while head.len() <= limit {
        let start = head.len();
        if (reader.take(HEAD_BYTES).read_to_end(head)? as u64) < HEAD_BYTES {
            return Ok(true);
        }
        let added = &head[start..];
        let added = if is_blank {
            added.trim_ascii_start()
        } else {
            added
        };
        is_blank = added.is_empty();
        if added.contains(&b'\n') {
            break;
        }
    }
    Ok(false)
}

/// The number that the file's name says is a step, else that of the nearest folder `step_<number>`.
fn step_of(path: &Path) -> Option<i64> {
    let number = |name: &str, labels: &[&str]| {
        let label = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let is_step = labels.iter().any(|end| label.ends_with(end)) || label.is_empty();
        is_step.then(|| name[label.len()..].parse().ok())?
    };
    let stem = path.file_stem()?.to_str()?;
    number(stem, &["step", "step_", "step-", "completions_"]).or_else(|| {
        let folders = path.ancestors().skip(1);
        let names = folders.filter_map(|folder| folder.file_name()?.to_str());
        let steps = names.filter(|name| name.starts_with("step_"));
        steps.filter_map(|name| number(name, &["step_"])).next()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_step_is_in_the_name() {
        for (path, step) in [
            ("dump/12.jsonl", Some(12)),
            ("logs/exp_001/train_data_step7.jsonl", Some(7)),
            ("out/completions/completions_00040.parquet", Some(40)),
            ("run/rollouts/step_42/train/all/traces.jsonl", Some(42)),
            ("rollouts.jsonl", None),
            ("99999999999999999999999.jsonl", None),
            ("v2/rollouts.jsonl", None),
            ("2024/llama3.jsonl", None),
            ("global_step_8.csv", Some(8)),
        ] {
            assert_eq!(step_of(Path::new(path)), step, "{path}");
        }
    }
}
