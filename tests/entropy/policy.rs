//! A softmax policy over a few actions in f64, independent of the crate, which it is compared with.

use crate::assert_close;
use qae::{LogProbsInput, Logits, Tensor, reference};
use qae_test_support::Random;

pub struct Policy {
    pub logits: Vec<f64>,
    /// π
    pub probability: Vec<f64>,
    /// log π, in nats; −∞ outside the support.
    pub log_probability: Vec<f64>,
    /// In nats.
    pub entropy: f64,
}

impl Policy {
    pub fn new(logits: &[f64]) -> Self {
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|z| (z - max).exp()).sum();
        let log_probability: Vec<f64> = logits.iter().map(|z| z - max - sum.ln()).collect();
        let probability: Vec<f64> = log_probability.iter().map(|l| l.exp()).collect();
        Self {
            entropy: -expectation(&probability, &log_probability),
            logits: logits.to_vec(),
            probability,
            log_probability,
        }
    }

    /// Of 2 to 65 actions, from almost uniform to almost deterministic, with logits that f32 holds.
    pub fn random(random: &mut Random) -> Self {
        let scale = random.pick(&[0.125_f32, 1.0, 4.0, 16.0]);
        let actions = 2 + random.below(64);
        let logits: Vec<f64> = (0..actions)
            .map(|_| f64::from(scale * random.between(-1.0, 1.0)))
            .collect();
        Self::new(&logits)
    }

    /// After a change of the logits.
    pub fn moved_by(&self, change: &[f64]) -> Self {
        let logits = self.logits.iter().zip(change).map(|(z, d)| z + d);
        Self::new(&logits.collect::<Vec<_>>())
    }

    pub fn len(&self) -> usize {
        self.logits.len()
    }

    /// Cov_π(log π, values), over the support.
    pub fn covariance_with_log(&self, values: &[f64]) -> f64 {
        let mean = expectation(&self.probability, values);
        let centered: Vec<f64> = values.iter().map(|value| value - mean).collect();
        // log π + H has expectation 0: what it multiplies may be centered or not.
        let surprise: Vec<f64> = (self.log_probability.iter())
            .map(|log_p| log_p + self.entropy)
            .collect();
        let products = centered.iter().zip(&surprise).map(|(c, s)| c * s);
        expectation(&self.probability, &products.collect::<Vec<_>>())
    }

    /// ½ R² (¼ + 2 ln n), with R the range of the change.
    pub fn remainder_bound(&self, change: &[f64]) -> f64 {
        let max = change.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let min = change.iter().copied().fold(f64::INFINITY, f64::min);
        0.5 * (max - min).powi(2) * (0.25 + 2.0 * (self.len() as f64).ln())
    }
}

/// E_π, where what has no probability counts nothing, whatever it is.
pub fn expectation(probability: &[f64], values: &[f64]) -> f64 {
    let terms = probability.iter().zip(values);
    terms
        .map(|(&p, &v)| if p == 0.0 { 0.0 } else { p * v })
        .sum()
}

/// Entropy, log π and dH / dlogits of the crate.
pub fn of_crate(logits: &[f64]) -> (f64, Vec<f64>, Vec<f64>) {
    let narrow: Vec<f32> = logits.iter().map(|&z| z as f32).collect();
    let n = narrow.len();
    let rows: Vec<f32> = narrow.iter().copied().cycle().take(n * n).collect();
    let token_id: Vec<i32> = (0..n as i32).collect();
    let input = LogProbsInput {
        logits: Logits::contiguous(Tensor::F32(&rows), n),
        token_id: &token_id,
        mask: None,
        temperature: 1.0,
    };
    let out = reference::log_probs_from_logits(&input).unwrap();
    let (zeros, ones) = (vec![0.0; n], vec![1.0; n]);
    let gradient = reference::log_probs_from_logits_backward(&input, &zeros, Some(&ones)).unwrap();
    (out.entropy[0], out.log_prob, gradient[..n].to_vec())
}

#[test]
fn the_policy_is_that_of_the_crate() {
    let mut random = Random(1);
    for _ in 0..200 {
        let policy = Policy::random(&mut random);
        let (entropy, log_prob, _) = of_crate(&policy.logits);
        assert_close(entropy, policy.entropy, 1e-13, "entropy");
        for (found, expected) in log_prob.iter().zip(&policy.log_probability) {
            assert_close(*found, *expected, 1e-13, "log π");
        }
    }
}
