//! The lines of many files, some megabytes at a time.
//!
//! Read rather than mapped: mapped pages would count as this process's memory, and the buffers are
//! used again and again.

use super::input::Input;
use crate::error::Result;
use memchr::{memchr, memrchr};
use std::io::Read;

/// A longer line is no rollout but a file without line breaks.
pub(super) const MAX_LINE: usize = 64 << 20;

/// What is said of a longer line.
pub(super) fn too_long() -> String {
    format!("expected a line of at most {} MiB", MAX_LINE >> 20)
}

/// Of a batch, which all threads together work on.
const BATCH_BYTES: usize = 32 << 20;

const MAX_CHUNK: usize = 2 << 20;
const MIN_CHUNK: usize = 128 << 10;

/// Whole lines of one file.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    /// Which file.
    pub(super) file: usize,
    pub(super) bytes: Vec<u8>,
    /// The chunk stands for one line that is longer than [`MAX_LINE`].
    pub(super) is_too_long: bool,
    /// Read from the file for this chunk.
    pub(super) num_read: u64,
}

/// Reads the files one after the other.
pub(super) struct Chunks<'a> {
    files: &'a [Input],
    file: usize,
    reader: Option<Box<dyn Read + Send>>,
    /// What was read beyond the last line break.
    rest: Vec<u8>,
    chunk_size: usize,
    chunks_per_batch: usize,
}

impl<'a> Chunks<'a> {
    pub(super) fn new(files: &'a [Input], num_threads: usize) -> Self {
        let chunks_per_batch = 2 * num_threads.max(1);
        Self {
            files,
            file: 0,
            reader: None,
            rest: vec![],
            chunk_size: (BATCH_BYTES / chunks_per_batch).clamp(MIN_CHUNK, MAX_CHUNK),
            chunks_per_batch,
        }
    }

    /// The next chunks, in order, in the memory of `used` ones; none at the end.
    pub(super) fn batch(&mut self, used: Vec<Chunk>) -> Result<Vec<Chunk>> {
        let mut used = used.into_iter();
        let mut batch = Vec::with_capacity(self.chunks_per_batch);
        let mut num_bytes = 0;
        // Many small files, one a step, make a batch together.
        while num_bytes < self.chunks_per_batch * self.chunk_size {
            let buffer = used.next().map(|chunk| chunk.bytes).unwrap_or_default();
            match self.chunk(buffer)? {
                None => break,
                Some(chunk) => {
                    num_bytes += chunk.bytes.len();
                    batch.push(chunk);
                }
            }
        }
        Ok(batch)
    }

    fn chunk(&mut self, mut bytes: Vec<u8>) -> Result<Option<Chunk>> {
        loop {
            let mut reader = match self.reader.take() {
                Some(reader) => reader,
                None if self.file == self.files.len() => return Ok(None),
                None => self.files[self.file].open()?,
            };
            bytes.clear();
            bytes.append(&mut self.rest);
            let (end, num_read, is_at_end) = self.fill(&mut *reader, &mut bytes)?;
            let mut chunk = Chunk {
                file: self.file,
                num_read,
                ..Chunk::default()
            };
            if is_at_end {
                self.file += 1;
            } else {
                self.reader = Some(reader);
            }
            match end {
                End::Line(length) => {
                    self.rest.extend_from_slice(&bytes[length..]);
                    bytes.truncate(length);
                }
                End::TooLong => {
                    bytes.clear();
                    chunk.is_too_long = true;
                }
            }
            if !bytes.is_empty() || chunk.is_too_long || chunk.num_read > 0 {
                chunk.bytes = bytes;
                return Ok(Some(chunk));
            }
        }
    }

    /// Reads until there is a chunk with a line break, or the file ends; also what was read beyond
    /// it goes to `bytes`.
    fn fill(&mut self, reader: &mut dyn Read, bytes: &mut Vec<u8>) -> Result<(End, u64, bool)> {
        let mut num_read = 0;
        loop {
            let start = bytes.len();
            let wanted = self.chunk_size as u64;
            let found = read_up_to(reader, wanted, bytes);
            let found = found.map_err(|error| self.files[self.file].unreadable(&error))?;
            num_read += found;
            let is_at_end = found < wanted;
            let line_break = memrchr(b'\n', &bytes[start..]);
            let is_too_long = line_break.is_none() && bytes.len() > MAX_LINE;
            match line_break {
                _ if is_at_end && is_too_long => return Ok((End::TooLong, num_read, true)),
                _ if is_at_end => return Ok((End::Line(bytes.len()), num_read, true)),
                Some(at) => return Ok((End::Line(start + at + 1), num_read, false)),
                None if is_too_long => return self.skip_line(reader, bytes, num_read),
                None => {}
            }
        }
    }

    /// Reads on to the end of a line that is too long, and keeps what follows it.
    fn skip_line(
        &mut self,
        reader: &mut dyn Read,
        bytes: &mut Vec<u8>,
        mut num_read: u64,
    ) -> Result<(End, u64, bool)> {
        loop {
            bytes.clear();
            let wanted = self.chunk_size as u64;
            let found = read_up_to(reader, wanted, bytes);
            let found = found.map_err(|error| self.files[self.file].unreadable(&error))?;
            num_read += found;
            if let Some(at) = memchr(b'\n', bytes) {
                self.rest.extend_from_slice(&bytes[at + 1..]);
                // The rest of the file is the next chunk's, even if nothing more can be read.
                return Ok((End::TooLong, num_read, false));
            }
            if found < wanted {
                return Ok((End::TooLong, num_read, true));
            }
        }
    }
}

enum End {
    /// Of the last whole line, in bytes from the start.
    Line(usize),
    TooLong,
}

fn read_up_to(reader: &mut dyn Read, wanted: u64, bytes: &mut Vec<u8>) -> std::io::Result<u64> {
    // Else it would grow by doubling, to twice of what most chunks need.
    bytes.reserve_exact(wanted as usize);
    reader.take(wanted).read_to_end(bytes).map(|n| n as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn lines_of(contents: &[&[u8]], chunk_size: usize) -> Vec<(usize, Vec<u8>, bool)> {
        let directory = tempfile::TempDir::new().unwrap();
        let mut inputs = vec![];
        for (i, content) in contents.iter().enumerate() {
            let path = directory.path().join(i.to_string());
            fs::write(&path, content).unwrap();
            inputs.push(Input::new(path).unwrap());
        }
        let mut chunks = Chunks::new(&inputs, 1);
        chunks.chunk_size = chunk_size;
        let (mut found, mut used) = (vec![], vec![]);
        loop {
            let batch = chunks.batch(used).unwrap();
            if batch.is_empty() {
                return found;
            }
            for chunk in &batch {
                let lines = chunk.bytes.split_inclusive(|&byte| byte == b'\n');
                found.extend(lines.map(|line| (chunk.file, line.to_vec(), false)));
                if chunk.is_too_long {
                    found.push((chunk.file, vec![], true));
                }
            }
            used = batch;
        }
    }

    #[test]
    fn lines_stay_whole_for_every_size_of_a_chunk() {
        let files: [&[u8]; 4] = [
            b"one\ntwo\n\nthree",
            b"",
            b"four\r\n",
            b"\nfive and more\nsix\n",
        ];
        let expected: Vec<_> = (files.iter().enumerate())
            .flat_map(|(i, file)| {
                let lines = file.split_inclusive(|&byte| byte == b'\n');
                lines.map(move |line| (i, line.to_vec(), false))
            })
            .collect();
        for chunk_size in 1..40 {
            assert_eq!(lines_of(&files, chunk_size), expected, "{chunk_size}");
        }
    }

    #[test]
    fn a_line_without_end_is_left_out_and_what_follows_is_not() {
        let long = vec![b'x'; MAX_LINE + 3_000_000];
        let file = [b"one\n", &long[..], b"\ntwo"].concat();
        let found = lines_of(&[&file, b"three"], MAX_CHUNK);
        assert_eq!(found[0], (0, b"one\n".to_vec(), false));
        assert_eq!(found[1], (0, vec![], true));
        assert_eq!(found[2], (0, b"two".to_vec(), false));
        assert_eq!(found[3], (1, b"three".to_vec(), false));
        assert_eq!(found.len(), 4);
        let found = lines_of(&[&long, b"three"], MAX_CHUNK);
        assert_eq!(found[0], (0, vec![], true));
        assert_eq!(found.len(), 2);
    }
}
