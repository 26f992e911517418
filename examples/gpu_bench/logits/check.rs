//! Whether what is timed is right, and the same on every run.

use super::device::DeviceBatch;
use super::inputs::{Case, HostLogits, Operation, Shape};
use crate::Result;
use crate::inputs::{Element, GROUP_SIZE};
use qae::cuda::Stream;
use qae::{
    Advantages, Config, Gradient, Groups, Layout, LogProbsInput, Logits, LogitsBatch, Tensor, cpu,
};
use rayon::prelude::*;

/// Batches of up to this many rows are compared with f64 whole; of larger ones, three responses.
const WHOLE_ROWS: usize = 256;

/// Of f32 gradients, relative to the largest of a response: a probability is a quotient of sums over
/// hundreds of thousands of columns. Those of bf16 are off by their rounding.
const TOLERANCE: f64 = 2e-5;

/// Of log-probs and entropies around 10, in nats.
const NATS: f64 = 1e-4;

/// Advantages of the responses.
pub fn advantages<T>(host: &HostLogits<T>, case: &Case) -> Result<Vec<f32>> {
    let groups = Groups::uniform(host.shape.num_responses, GROUP_SIZE)?;
    let config = case.config(&host.shape);
    let output = cpu::advantages(&host.rewards, &groups, &config.advantage)?;
    Ok(output.advantage.iter().map(|&a| a as f32).collect())
}

/// Launches on poisoned outputs: what must be written is, nothing else, and responses agree with
/// f64. The largest error of a gradient, relative to the largest of its response; of the forward
/// pass, in nats.
pub fn check<T: Element>(
    stream: &Stream,
    host: &HostLogits<T>,
    device: &mut DeviceBatch<T>,
    case: &Case,
    advantages: &[f32],
) -> Result<f64> {
    if case.operation == Operation::Backward {
        let forward = Case {
            operation: Operation::Forward,
            ..*case
        };
        device.launch(stream, &forward)?;
    }
    device.poison(stream, case)?;
    device.launch(stream, case)?;
    let checked = Checked {
        host,
        case,
        advantages,
        old_log_prob: device.old_log_prob(stream)?,
    };
    if case.operation == Operation::Forward {
        return checked.forward(&device.log_prob(stream)?, &device.entropy(stream)?);
    }
    let rows = checked.gradient_rows(stream, device)?;
    let gradient = device.gradient(stream)?;
    checked.written(&gradient, &rows)?;
    checked.gradient(&gradient, &rows)
}

struct Checked<'a, T> {
    host: &'a HostLogits<T>,
    case: &'a Case,
    advantages: &'a [f32],
    old_log_prob: Vec<f32>,
}

impl<T: Element> Checked<'_, T> {
    fn acts(&self, response: usize) -> bool {
        self.case.operation != Operation::Loss || self.advantages[response] != 0.0
    }

    /// The row of the gradient that belongs to each row of logits, if one is written.
    fn gradient_rows(
        &self,
        stream: &Stream,
        device: &DeviceBatch<T>,
    ) -> Result<Vec<Option<usize>>> {
        let Shape { width, .. } = self.host.shape;
        if self.case.operation == Operation::Loss {
            device.metrics(stream)?.check()?;
        }
        let rows = 0..self.host.shape.num_rows();
        let acting = rows.clone().filter(|row| self.acts(row / width));
        Ok(match self.case.gradient {
            Gradient::ZeroFill => rows.map(Some).collect(),
            Gradient::Untouched => rows
                .map(|row| self.acts(row / width).then_some(row))
                .collect(),
            Gradient::Compact => {
                let slots = device.active_slots(stream)?;
                if !slots.iter().copied().eq(acting.map(|row| row as i64)) {
                    return Err("the list of active slots is wrong".into());
                }
                let mut places = vec![None; self.host.shape.num_rows()];
                for (place, slot) in slots.into_iter().enumerate() {
                    places[slot as usize] = Some(place);
                }
                places
            }
        })
    }

    /// Rows of the gradient that are nobody's are as they were; those that do not act are +0.
    fn written(&self, gradient: &[T], rows: &[Option<usize>]) -> Result<()> {
        let Shape { width, vocab, .. } = self.host.shape;
        let mut owner = vec![None; rows.len()];
        for (row, place) in rows.iter().enumerate() {
            if let Some(place) = *place {
                owner[place] = Some(row);
            }
        }
        let is_right = |place: usize| {
            let found = &gradient[place * vocab..][..vocab];
            match owner[place] {
                None if self.case.in_place => {
                    let logits = &self.host.values[place * vocab..][..vocab];
                    bytemuck::cast_slice::<T, u8>(found) == bytemuck::cast_slice::<T, u8>(logits)
                }
                None => found.iter().all(T::is_poison),
                Some(row) if self.acts(row / width) => !found.iter().any(T::is_poison),
                Some(_) => bytemuck::cast_slice::<T, u8>(found)
                    .iter()
                    .all(|&byte| byte == 0),
            }
        };
        let places = 0..rows.len();
        match places.into_par_iter().find_first(|&place| !is_right(place)) {
            None => Ok(()),
            Some(row) => {
                Err(format!("row {row} of the gradient: not written, or one too many").into())
            }
        }
    }

    /// All responses, or the first and the last that act and the first that does not.
    fn compared(&self) -> Vec<usize> {
        let Shape { num_responses, .. } = self.host.shape;
        if self.host.shape.num_rows() <= WHOLE_ROWS {
            return (0..num_responses).collect();
        }
        let acts = |response: &usize| self.acts(*response);
        let first = (0..num_responses).find(acts);
        let last = (0..num_responses).rev().find(acts);
        let inactive = (0..num_responses).find(|response| !acts(response));
        [first, last, inactive].into_iter().flatten().collect()
    }

    /// Of a response.
    fn token_id(&self, response: usize) -> Vec<i32> {
        let ids = &self.host.token_id[self.host.shape.rows_of(response)];
        ids.iter().map(|&id| id as i32).collect()
    }

    fn logits(&self, response: usize) -> Logits<'_> {
        let values = &self.host.values[self.host.shape.logits_of(response)];
        Logits::contiguous(T::host(values), self.host.shape.vocab)
    }

    fn input<'a>(&'a self, response: usize, token_id: &'a [i32]) -> LogProbsInput<'a> {
        LogProbsInput {
            logits: self.logits(response),
            token_id,
            mask: None,
            temperature: 1.0,
        }
    }

    /// The largest error of log-probs and entropies.
    fn forward(&self, log_prob: &[f32], entropy: &[f32]) -> Result<f64> {
        let mut worst = 0.0;
        for response in self.compared() {
            let rows = self.host.shape.rows_of(response);
            let token_id = self.token_id(response);
            let expected = cpu::log_probs_from_logits(&self.input(response, &token_id))?;
            for (found, expected) in [
                (&log_prob[rows.clone()], expected.log_prob),
                (&entropy[rows], expected.entropy),
            ] {
                let errors = found.iter().zip(expected).map(|(&f, e)| f64::from(f) - e);
                worst = larger(worst, largest(errors));
            }
        }
        accept(worst, NATS, "log-probs or entropies are")
    }

    /// The largest error relative to the largest value of a response.
    fn gradient(&self, gradient: &[T], rows: &[Option<usize>]) -> Result<f64> {
        let vocab = self.host.shape.vocab;
        let mut worst = 0.0;
        for response in self.compared() {
            let expected = self.expected(response)?;
            let scale = largest(expected.iter().copied()).max(f64::MIN_POSITIVE);
            let rows = &rows[self.host.shape.rows_of(response)];
            for (expected, place) in expected.chunks(vocab).zip(rows) {
                let Some(place) = *place else { continue };
                let found = &gradient[place * vocab..][..vocab];
                let errors = found.iter().zip(expected).map(|(f, e)| f.to_f64() - e);
                worst = larger(worst, largest(errors) / scale);
            }
        }
        accept(worst, T::TOLERANCE.max(TOLERANCE), "the gradient is")
    }

    /// The gradient of a response, in f64: with a given normalizer it depends on no other.
    fn expected(&self, response: usize) -> Result<Vec<f64>> {
        let rows = self.host.shape.rows_of(response);
        let token_id = self.token_id(response);
        if self.case.operation == Operation::Backward {
            let d_log_prob = &self.host.d_log_prob[rows];
            let input = self.input(response, &token_id);
            return Ok(cpu::log_probs_from_logits_backward(
                &input, d_log_prob, None,
            )?);
        }
        let batch = LogitsBatch {
            layout: Layout::padded(1, self.host.shape.width).into(),
            mask: None,
            logits: self.logits(response),
            token_id: &token_id,
            old_log_prob: Some(Tensor::F32(&self.old_log_prob[rows])),
            ref_log_prob: None,
            importance_weight: None,
            advantages: Advantages::PerResponse(&self.advantages[response..=response]),
        };
        let config = Config {
            gradient: Gradient::ZeroFill,
            ..self.case.config(&self.host.shape)
        };
        Ok(cpu::loss_from_logits(&batch, &config)?.d_logits)
    }
}

/// NaN where one of them is.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b <= a { a } else { b }
}

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.map(f64::abs).fold(0.0, larger)
}

fn accept(error: f64, tolerance: f64, what: &str) -> Result<f64> {
    if error.is_nan() || error > tolerance {
        return Err(format!("{what} off by {error:e}, more than {tolerance:e}").into());
    }
    Ok(error)
}

/// How many of `launches` launches differ from the first in a bit of the gradient, the log-probs or
/// the metrics.
pub fn differing<T: Element>(
    stream: &Stream,
    device: &mut DeviceBatch<T>,
    case: &Case,
    launches: usize,
) -> Result<usize> {
    let mut run = || -> Result<_> {
        device.poison(stream, case)?;
        device.launch(stream, case)?;
        let log_prob = device.log_prob(stream)?;
        let words = device.metric_words(stream)?;
        Ok((device.gradient(stream)?, log_prob, words))
    };
    let first = run()?;
    let mut differing = 0;
    for _ in 1..launches {
        let (gradient, log_prob, words) = run()?;
        let is_same = bytemuck::cast_slice::<T, u8>(&gradient)
            == bytemuck::cast_slice::<T, u8>(&first.0)
            && bytemuck::cast_slice::<f32, u8>(&log_prob)
                == bytemuck::cast_slice::<f32, u8>(&first.1)
            && words == first.2;
        differing += usize::from(!is_same);
    }
    Ok(differing)
}
