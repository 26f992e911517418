//! What to time, from the command line.

use super::Result;
use super::inputs::{GROUP_SIZE, WIDTH};
use super::logits;

pub const USAGE: &str = "\
usage: gpu_bench [--operation loss_from_log_probs] [--sizes 64k,1m,16m,128m] [OPTION...]
       gpu_bench [--operation logits] [--rows 8192] [--vocab 151936] [OPTION...]
options: --samples 50, --only TEXT, --device 0, --repeat-bits 100";

/// What to run; nothing said: all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operations {
    LossFromLogProbs,
    /// All that start from logits.
    Logits,
}

pub struct Arguments {
    pub operations: Option<Operations>,
    /// Slots of each batch of log-probs.
    pub sizes: Vec<usize>,
    /// Rows of logits that are timed.
    pub rows: usize,
    /// Columns of logits that are timed.
    pub vocab: usize,
    /// Samples of each case.
    pub samples: usize,
    /// Part of the names of the cases to run, such as `f32/packed/dense`.
    pub only: Option<String>,
    /// Launches whose bits are compared, instead of times.
    pub repeat_bits: Option<usize>,
    pub device: usize,
}

impl Arguments {
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut parsed = Self {
            operations: None,
            sizes: vec![1 << 16, 1 << 20, 1 << 24, 1 << 27],
            rows: 8192,
            vocab: 151_936,
            samples: 50,
            only: None,
            repeat_bits: None,
            device: 0,
        };
        while let Some(name) = arguments.next() {
            let value = arguments.next();
            let value = value.ok_or_else(|| format!("{name}: a value is missing\n{USAGE}"))?;
            let number = || positive(&name, &value);
            match name.as_str() {
                "--operation" => parsed.operations = Some(operations(&value)?),
                "--rows" => parsed.rows = rows(number()?)?,
                "--vocab" => parsed.vocab = number()?,
                "--sizes" => parsed.sizes = value.split(',').map(size).collect::<Result<_>>()?,
                "--samples" => parsed.samples = number()?,
                "--only" => parsed.only = Some(value),
                "--repeat-bits" => parsed.repeat_bits = Some(number()?),
                "--device" => parsed.device = value.parse()?,
                _ => return Err(format!("{name}: unknown\n{USAGE}").into()),
            }
        }
        Ok(parsed)
    }

    pub fn runs(&self, operations: Operations) -> bool {
        self.operations.is_none_or(|wanted| wanted == operations)
    }

    pub fn is_wanted(&self, case: &str) -> bool {
        self.only.as_ref().is_none_or(|only| case.contains(only))
    }
}

fn operations(text: &str) -> Result<Operations> {
    match text {
        "loss_from_log_probs" => Ok(Operations::LossFromLogProbs),
        "logits" => Ok(Operations::Logits),
        _ => {
            Err(format!("--operation: expected loss_from_log_probs or logits, found {text}").into())
        }
    }
}

fn rows(rows: usize) -> Result<usize> {
    let whole = logits::WIDTH * GROUP_SIZE;
    let rows = Some(rows).filter(|rows| rows.is_multiple_of(whole));
    Ok(rows.ok_or_else(|| format!("--rows: expected a multiple of {whole}"))?)
}

fn positive(name: &str, text: &str) -> Result<usize> {
    let number = text.parse().ok().filter(|&number| number > 0);
    Ok(number.ok_or_else(|| format!("{name}: expected a number above 0, found {text}"))?)
}

/// Such as 64k, in units of 1024, or 16m, in units of 1024².
fn size(text: &str) -> Result<usize> {
    let (digits, unit) = match (text.strip_suffix('k'), text.strip_suffix('m')) {
        (Some(digits), _) => (digits, 1 << 10),
        (_, Some(digits)) => (digits, 1 << 20),
        _ => (text, 1),
    };
    let whole = WIDTH * GROUP_SIZE;
    let slots = positive("--sizes", digits)?.checked_mul(unit);
    let slots = slots.filter(|slots| slots.is_multiple_of(whole));
    Ok(slots.ok_or_else(|| format!("--sizes: expected multiples of {whole}, found {text}"))?)
}
