//! What `qae step` reports; its serde form is `--format json`, its `Display` the text.

use super::difference::Difference;
use super::outcome::Outcome;
use crate::batch::DType;
use crate::config::Config;
use crate::config_json::ConfigFile;
use crate::io::{Case, Level};
use crate::metrics::{EntropyMetrics, Metrics};
use serde::Serialize;

/// A step's result in figures. Shares are fractions of 1.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The file that was read.
    pub file: String,
    /// The name in its metadata.
    pub name: String,
    /// What was read of the policy.
    pub level: Level,
    /// What the file has besides, and was not read or has no effect at this level.
    pub not_read: Vec<&'static str>,
    /// The shape of its tokens: \[responses, slots\] or \[tokens\].
    pub shape: Vec<usize>,
    /// Columns of its logits.
    pub vocab_size: Option<usize>,
    /// The dtype of its log-probs or logits.
    pub dtype: &'static str,
    /// The configuration that was used, with all defaults.
    pub config: ConfigFile,
    /// The loss, KL and entropy terms included.
    pub loss: f64,
    /// The policy-gradient term.
    pub pg_loss: f64,
    /// The KL term before its coefficient, if there is one.
    pub kl_loss: Option<f64>,
    /// Entropy of the policy, from logits.
    pub entropy: Option<Entropy>,
    /// Root of the sum of the squared gradient with respect to log-probs.
    pub gradient_norm: f64,
    /// The same with respect to logits, from logits.
    pub logits_gradient_norm: Option<f64>,
    /// Groups.
    pub groups: Groups,
    /// Responses.
    pub responses: Responses,
    /// Tokens.
    pub tokens: Tokens,
    /// Clipping and ratios, over the tokens in the scope of the metrics.
    pub ratios: Ratios,
    /// Values that were left out because they are not finite or point nowhere.
    pub left_out: LeftOut,
    /// What ran.
    pub backend: BackendReport,
    /// From the f64 reference, where another backend ran.
    pub difference: Option<Difference>,
    /// The file that was written.
    pub out: Option<String>,
}

/// Counts of groups.
#[derive(Debug, Clone, Serialize)]
pub struct Groups {
    /// All groups.
    pub total: u64,
    /// Those where only successes act; `None` without a quantile.
    pub hard: Option<u64>,
    /// Those where only failures act; `None` without a quantile.
    pub easy: Option<u64>,
    /// Those whose rewards are all equal.
    pub zero_variance: u64,
}

/// Counts of responses.
#[derive(Debug, Clone, Serialize)]
pub struct Responses {
    /// All responses.
    pub total: u64,
    /// Advantage above 0.
    pub positive: u64,
    /// Advantage exactly 0.
    pub zero: u64,
    /// Advantage below 0.
    pub negative: u64,
    /// Advantage not 0, and at least one token.
    pub active: u64,
}

/// Counts of tokens.
#[derive(Debug, Clone, Serialize)]
pub struct Tokens {
    /// Not masked.
    pub valid: u64,
    /// Valid, with an advantage other than 0.
    pub active: u64,
    /// Share of the valid tokens that need neither loss nor gradient; 0 with a KL or entropy term.
    pub skipped_share: f64,
}

/// Entropy in nats, over the tokens in the scope of the metrics; means are `None` without tokens.
#[derive(Debug, Clone, Serialize)]
pub struct Entropy {
    /// Aggregated as the policy-gradient term, before its coefficient.
    pub loss: f64,
    /// Mean over all tokens.
    pub mean: Option<f64>,
    /// Mean where the advantage is positive.
    pub positive: Option<f64>,
    /// Mean where the advantage is exactly 0.
    pub zero: Option<f64>,
    /// Mean where the advantage is negative.
    pub negative: Option<f64>,
    /// Tokens that these figures cover.
    pub tokens: u64,
}

/// Clipping, divergence and ratios.
#[derive(Debug, Clone, Serialize)]
pub struct Ratios {
    /// Tokens that these figures cover.
    pub tokens: u64,
    /// Share of tokens clipped above.
    pub clipped_above: f64,
    /// Share of tokens clipped below.
    pub clipped_below: f64,
    /// Share of tokens that the dual clip holds.
    pub dual_clipped: f64,
    /// Mean of old minus new log-prob, in nats.
    pub approx_kl: f64,
    /// Smallest importance ratio; `None` without tokens.
    pub min_ratio: Option<f64>,
    /// Largest importance ratio; `None` without tokens.
    pub max_ratio: Option<f64>,
}

/// Counts of values that were left out.
#[derive(Debug, Clone, Serialize)]
pub struct LeftOut {
    /// Rewards that are not finite.
    pub rewards: u64,
    /// Tokens whose log-ratio, loss or gradient is not finite.
    pub tokens: u64,
    /// Rows that point outside their tensor.
    pub rows: u64,
}

/// What ran and what it took.
#[derive(Debug, Clone, Serialize)]
pub struct BackendReport {
    /// Its name.
    pub name: String,
    /// Why this one.
    pub reason: String,
    /// Bytes of tensors read and written.
    pub bytes_moved: u64,
    /// Duration of the operation; `None` where it would mean nothing.
    pub seconds: Option<f64>,
    /// The quotient of the two, 10⁹ bytes per second.
    pub gigabytes_per_second: Option<f64>,
}

impl Report {
    /// Of `outcome` on `case`; the caller fills in the file, the backend, the difference and `out`.
    pub(super) fn new(case: &Case, config: &Config, outcome: &Outcome) -> Self {
        let metrics = &outcome.metrics;
        Self {
            file: String::new(),
            name: case.name().to_string(),
            level: case.level(),
            not_read: not_read(case, config),
            shape: case.shape(),
            vocab_size: case.vocab_size(),
            dtype: match case.dtype() {
                DType::F64 => "F64",
                DType::F32 => "F32",
                DType::Bf16 => "BF16",
                DType::F16 => "F16",
            },
            config: ConfigFile::from(config),
            loss: metrics.loss,
            pg_loss: metrics.pg_loss,
            kl_loss: config.kl.map(|_| metrics.kl_loss),
            entropy: metrics.entropy.as_ref().map(Entropy::new),
            gradient_norm: outcome.gradient_norm,
            logits_gradient_norm: outcome.logits_gradient_norm,
            groups: Groups {
                total: metrics.groups.num_groups,
                hard: config.advantage.k().map(|_| metrics.groups.hard_groups),
                easy: config.advantage.k().map(|_| metrics.groups.easy_groups),
                zero_variance: metrics.groups.zero_variance_groups,
            },
            responses: Responses {
                total: case.num_responses() as u64,
                positive: metrics.positive,
                zero: metrics.zero,
                negative: metrics.negative,
                active: metrics.active,
            },
            tokens: Tokens::new(config, case, metrics),
            ratios: Ratios::new(metrics),
            left_out: LeftOut {
                rewards: metrics.groups.nonfinite_rewards,
                tokens: metrics.nonfinite_tokens,
                rows: metrics.out_of_range,
            },
            backend: BackendReport::new(outcome),
            difference: None,
            out: None,
        }
    }
}

impl Tokens {
    fn new(config: &Config, case: &Case, metrics: &Metrics) -> Self {
        let slots = case.valid_slots();
        let valid = slots.iter().map(|slots| slots.len() as u64).sum();
        let active = metrics.active_tokens;
        let all_act = config.kl.is_some() || config.entropy_coef != 0.0;
        let acting = if all_act { valid } else { active };
        Self {
            valid,
            active,
            skipped_share: share(valid - acting.min(valid), valid),
        }
    }
}

impl Entropy {
    fn new(entropy: &EntropyMetrics) -> Self {
        let of = |mean: f64, tokens: u64| (tokens > 0).then_some(mean);
        let tokens = entropy.positive_tokens + entropy.zero_tokens + entropy.negative_tokens;
        Self {
            loss: entropy.loss,
            mean: of(entropy.mean(), tokens),
            positive: of(entropy.mean_positive(), entropy.positive_tokens),
            zero: of(entropy.mean_zero(), entropy.zero_tokens),
            negative: of(entropy.mean_negative(), entropy.negative_tokens),
            tokens,
        }
    }
}

impl Ratios {
    fn new(metrics: &Metrics) -> Self {
        let finite = |ratio: f64| ratio.is_finite().then_some(ratio);
        Self {
            tokens: metrics.tokens,
            clipped_above: share(metrics.clipped_above, metrics.tokens),
            clipped_below: share(metrics.clipped_below, metrics.tokens),
            dual_clipped: metrics.dual_clip_fraction(),
            approx_kl: metrics.approx_kl(),
            min_ratio: finite(metrics.min_ratio),
            max_ratio: finite(metrics.max_ratio),
        }
    }
}

impl BackendReport {
    fn new(outcome: &Outcome) -> Self {
        let rate = |seconds: f64| outcome.bytes_moved as f64 / seconds / 1e9;
        Self {
            name: String::new(),
            reason: String::new(),
            bytes_moved: outcome.bytes_moved,
            seconds: outcome.seconds,
            gigabytes_per_second: outcome.seconds.filter(|&seconds| seconds > 0.0).map(rate),
        }
    }
}

/// What a reader might take for granted.
fn not_read(case: &Case, config: &Config) -> Vec<&'static str> {
    let mut names: Vec<_> = case.not_read().into_iter().collect();
    if case.level() == Level::LogProbs && config.temperature != 1.0 {
        names.push("temperature");
    }
    names
}

fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}
