//! From logits to the loss and its gradient (docs/math.md §2, §3, §4, §6).

use super::advantages::{AdvantageOutput, add as add_groups, advantages};
use super::gathered::Gathered;
use super::loss_from_log_probs::{Call, normalizer, rows_of, sum};
use super::response::{Use, response, uses};
use super::softmax_stats::{RowShard, SoftmaxStats};
use super::tokens::Tokens;
use crate::backend::{LogitsOutput, LossOutput};
use crate::batch::{Advantages, LogitsBatch, Slot, Tensor};
use crate::config::{Config, Gradient};
use crate::error::Result;
use crate::metrics::Metrics;

/// L = Σ_i w_i Σ_t m_it (ℓ_it − entropy_coef · H_it) with the log-probs and entropies H of the
/// logits, its gradient with respect to log-probs and logits, and metrics, in f64 and one thread.
///
/// | tensor of `batch` | shape | dtype | unit |
/// |---|---|---|---|
/// | `logits` | a row of vocab_size for each slot | f64, f32, bf16, f16 | dimensionless |
/// | `token_id` | one for each slot | i32 | index |
/// | `old_log_prob`, `ref_log_prob` | one for each slot | f64, f32, bf16, f16, alike | nats |
/// | `mask` | one for each slot | u8 | dimensionless |
/// | rewards | \[num_responses\] | f32 | reward |
/// | advantages, importance weights | \[num_rows\] or one for each slot | f32 | dimensionless |
///
/// A row of logits is read if its token is valid and either acts (its advantage is not 0, or there
/// is a KL or an entropy term), or is in the scope of the metrics, or carries a log-ratio to GSPO's
/// mean. All others leave no trace, whatever they hold. A batch without a valid token has loss 0
/// and gradient 0. A token whose values are not finite is left out and counted. Sums are taken in
/// order, columns, tokens, then rows.
///
/// # Errors
/// Those of [`LogitsBatch::check`]; nothing is computed then.
///
/// ```
/// use qae::{Advantages, Config, Layout, Logits, LogitsBatch, Tensor, reference};
///
/// let batch = LogitsBatch {
///     layout: Layout::padded(1, 1).into(),
///     mask: None,
///     logits: Logits::contiguous(Tensor::F32(&[3.0, 3.0]), 2),
///     token_id: &[1],
///     old_log_prob: Some(Tensor::F32(&[0.5_f32.ln()])),
///     ref_log_prob: None,
///     importance_weight: None,
///     advantages: Advantages::PerResponse(&[0.5]),
/// };
/// let out = reference::loss_from_logits(&batch, &Config::default())?;
/// // On policy: g = −A, and A · (p − 1[token]) with p = ½.
/// assert!((out.loss.d_log_prob[0] + 0.5).abs() < 1e-7);
/// assert!((out.d_logits[0] - 0.25).abs() < 1e-7 && (out.d_logits[1] + 0.25).abs() < 1e-7);
/// # Ok::<(), qae::Error>(())
/// ```
pub fn loss_from_logits(batch: &LogitsBatch<'_>, config: &Config) -> Result<LogitsOutput> {
    batch.check(config)?;
    let from_rewards = match batch.advantages {
        Advantages::FromRewards {
            rewards, groups, ..
        } => Some(advantages(rewards, groups, &config.advantage)?),
        Advantages::PerResponse(_) | Advantages::PerToken(_) => None,
    };
    let gathered = Gathered::new(batch)?;
    let tokens = gathered.tokens(batch);
    let call = Call {
        tokens,
        config,
        global_advantage: from_rewards.as_ref().map(|out| &out.advantage[..]),
        normalizer: normalizer(config, || tokens.counts()),
    };
    let responses = 0..batch.layout.num_responses();
    let rows = Rows {
        batch,
        config,
        gathered: &gathered,
        uses: responses
            .flat_map(|response| uses(&call, response))
            .collect(),
    };
    let softmax = rows.forward();
    let (losses, metrics, active_rows) = losses(&call, &softmax, from_rewards.as_ref());
    let (d_logits, active_slots) = rows.backward(&softmax, &losses);
    let token_tensor = |values: &[f64]| gathered.scatter(values, batch.token_id.len());
    let (baseline, advantage) = from_rewards
        .map(|out| (out.baseline, out.advantage))
        .unzip();
    Ok(LogitsOutput {
        loss: LossOutput {
            metrics,
            d_log_prob: token_tensor(&losses.d_log_prob),
            baseline,
            advantage,
            active_rows,
        },
        log_prob: token_tensor(&softmax.log_prob),
        entropy: token_tensor(&softmax.entropy),
        d_logits,
        active_slots,
    })
}

/// The rows of logits of a call, by position.
struct Rows<'a> {
    batch: &'a LogitsBatch<'a>,
    config: &'a Config,
    gathered: &'a Gathered,
    uses: Vec<Use>,
}

/// What follows from the rows that are read, by position; 0 elsewhere.
struct Softmax {
    stats: Vec<Option<SoftmaxStats>>,
    log_prob: Vec<f64>,
    entropy: Vec<f64>,
}

/// dL/d log_prob and dL/d entropy, by position.
struct Losses {
    d_log_prob: Vec<f64>,
    d_entropy: Vec<f64>,
}

impl Rows<'_> {
    fn shard(&self, slot: &Slot) -> RowShard<'_> {
        RowShard {
            logits: self.batch.logits.row(slot.row),
            vocab_start: 0,
            token_id: self.batch.token_id[slot.token] as usize,
            temperature: self.config.temperature,
        }
    }

    /// log_prob = z\[token\] − logsumexp(z) and the entropy of every row that is read.
    fn forward(&self) -> Softmax {
        let slots = self.gathered.slots.iter().zip(&self.uses);
        let stats = slots.map(|(slot, used)| {
            (*used != Use::None).then(|| SoftmaxStats::of_row(&self.shard(slot)))
        });
        let stats: Vec<_> = stats.collect();
        let each = |value: &dyn Fn(&SoftmaxStats) -> f64| {
            let values = stats.iter().map(|stats| stats.as_ref().map_or(0.0, value));
            values.collect()
        };
        Softmax {
            log_prob: each(&|stats| stats.log_prob(self.config.temperature)),
            entropy: each(&SoftmaxStats::entropy),
            stats,
        }
    }

    /// d_logits = (g (1\[token\] − p) − h p (z − Σ p z)) / temperature of every row that acts, and
    /// the slots of its rows if compact.
    fn backward(&self, softmax: &Softmax, losses: &Losses) -> (Vec<f64>, Vec<u64>) {
        let vocab_size = self.batch.logits.vocab_size;
        let gradient = self.config.gradient;
        let num_slots = self.batch.layout.num_slots();
        let rows = self.gathered.gradient_rows(&self.uses, gradient, num_slots);
        let mut d_logits = vec![0.0; rows.len() * vocab_size];
        for (chunk, &(_, position)) in d_logits.chunks_exact_mut(vocab_size).zip(&rows) {
            let Some(position) = position else { continue };
            let (g, h) = (losses.d_log_prob[position], losses.d_entropy[position]);
            // Left out, clipped, or without a term: 0, as it is.
            if let Some(stats) = softmax.stats[position]
                && (g != 0.0 || h != 0.0)
            {
                let shard = self.shard(&self.gathered.slots[position]);
                stats.backward(&shard, g, h, chunk);
            }
        }
        let active_slots = match gradient {
            Gradient::Compact => rows.iter().map(|&(index, _)| index as u64).collect(),
            Gradient::ZeroFill | Gradient::Untouched => vec![],
        };
        (d_logits, active_slots)
    }
}

/// The loss of log-probs that are known, its derivatives, and the active responses.
fn losses(
    call: &Call<'_>,
    softmax: &Softmax,
    from_rewards: Option<&AdvantageOutput>,
) -> (Losses, Metrics, Vec<u32>) {
    let call = Call {
        tokens: Tokens {
            log_prob: Tensor::F64(&softmax.log_prob),
            entropy: Some(&softmax.entropy),
            ..call.tokens
        },
        ..*call
    };
    let mut losses = Losses {
        d_log_prob: vec![0.0; softmax.log_prob.len()],
        d_entropy: vec![0.0; softmax.log_prob.len()],
    };
    let layout = call.tokens.layout;
    let responses = rows_of(layout, &mut losses.d_log_prob)
        .into_iter()
        .zip(rows_of(layout, &mut losses.d_entropy))
        .enumerate();
    let parts: Vec<Metrics> = responses
        .map(|(row, (d_log_prob, d_entropy))| response(&call, row, d_log_prob, d_entropy))
        .collect();
    let (mut metrics, active_rows) = sum(&parts, call.config);
    metrics.entropy.get_or_insert_default();
    if let Some(out) = from_rewards {
        add_groups(&mut metrics.groups, &out.metrics);
    }
    (losses, metrics, active_rows)
}
