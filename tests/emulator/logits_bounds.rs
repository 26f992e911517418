//! Log-ratios that stay away from the bounds of clips and clamps, where f32 and f64 may differ.

use qae::Objective;

use crate::case::Values;
use crate::logits_case::LogitsCase;

/// Ratios at which [`crate::random::objectives`] or their clamps have a bound, on either side of 1.
const RATIO_BOUNDS: [f64; 6] = [0.8, 1.28, 1.5, 2.0, 3.0, 1.454_991_414_618_201_3];

/// What log-ratios keep from a bound: far more than f32 loses in a log-prob.
const MARGIN: f64 = 2e-4;

impl LogitsCase {
    /// Moves log-ratios that f32 might put on the other side of a clip or a clamp than f64 does.
    pub fn keep_clear_of_bounds(&mut self) {
        let log_prob = self.log_probs();
        let Some(mut old) = self.old_log_prob.take() else {
            return;
        };
        for (i, &log_prob) in log_prob.iter().enumerate() {
            let is_near = |old: &Values| {
                let log_ratio = log_prob - old.tensor().get(i);
                RATIO_BOUNDS
                    .iter()
                    .any(|bound| (log_ratio.abs() - bound.ln().abs()).abs() < MARGIN)
            };
            while is_near(&old) {
                lower(&mut old, i);
            }
        }
        self.old_log_prob = Some(old);
        while self.is_near_sequence_bound(&log_prob) {
            let old = self.old_log_prob.as_mut().expect("set above");
            (0..log_prob.len()).for_each(|i| lower(old, i));
        }
    }

    /// Whether GSPO's mean log-ratio of a response is at a bound of its own.
    fn is_near_sequence_bound(&self, log_prob: &[f64]) -> bool {
        if !matches!(self.config.objective, Objective::Gspo { .. }) {
            return false;
        }
        let old = self
            .old_log_prob
            .as_ref()
            .expect("the objective has a ratio")
            .tensor();
        let mut means = vec![(0.0, 0); self.layout.num_responses()];
        for slot in self.slots().iter().filter(|slot| self.is_valid(slot)) {
            let (sum, count) = &mut means[slot.response.expect("valid")];
            *sum += log_prob[slot.token] - old.get(slot.token);
            *count += 1;
        }
        let bounds = [f64::ln(0.98), f64::ln(1.03), 0.125];
        let is_near = |(sum, count): (f64, i32)| {
            let mean = sum / f64::from(count.max(1));
            bounds.iter().any(|bound| (mean - bound).abs() < MARGIN)
        };
        means.into_iter().any(is_near)
    }
}

/// By more than a bound's margin, also where the dtype has few digits.
fn lower(values: &mut Values, index: usize) {
    let value = values.tensor().get(index);
    values.set(index, (value - (0.02 * value.abs()).max(0.015)) as f32);
}
