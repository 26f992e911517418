//! What to compute: the configuration of every operation, in the field's standard terms.
//!
//! Plain data; [`Config::check`] says whether a combination is acceptable. The JSON form of the
//! golden cases and of `--config` is in [`crate::config_json`].

use crate::error::{Error, Result};

/// How the k-quantile of a group's rewards is defined between two rewards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interpolation {
    /// inf{x : F(x) ≥ k}, the ⌈k·n⌉-th smallest reward (arXiv 2509.22611, Eq. 4).
    InvertedCdf,
    /// Linear between the neighbors of position k·(n − 1), as `torch.quantile`.
    Linear,
}

/// What is subtracted from a response's reward.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Baseline {
    /// The group's mean reward (GRPO, DAPO).
    Mean,
    /// The mean of the other responses of the group (RLOO).
    LeaveOneOut,
    /// The group's k-quantile (QAE).
    Quantile {
        /// The quantile level, a decimal in (0, 1), held in f64 from end to end.
        k: f64,
        /// Its definition between two rewards.
        interpolation: Interpolation,
    },
}

/// What the reward's distance from the baseline is divided by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scale {
    /// 1: no scaling (Dr.GRPO).
    None,
    /// The group's standard deviation plus `epsilon`.
    Std {
        /// Divisor n − 1 (verl, TRL) rather than n (the paper's proof).
        unbiased: bool,
        /// Added to the standard deviation, in units of reward; at least 0.
        epsilon: f64,
    },
}

/// The advantage of the only response of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Singleton {
    /// Baseline 0 and standard deviation 1: the reward itself over 1 + ε (verl).
    Reward,
    /// 0 (TRL).
    Zero,
}

/// Which signs of the advantage may act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// As computed.
    Off,
    /// Hard groups keep positive advantages only, easy groups negative ones only.
    TwoRegime,
    /// Successes act in hard groups only, failures always; ±1/(std + ε) (2509.22611, Eq. 7).
    PositiveMask,
    /// Failures act in easy groups only, successes always; ±1/(std + ε) (2509.22611, Eq. 8).
    NegativeMask,
}

/// From rewards to advantages (docs/math.md §1; arXiv 2509.22611).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdvantageConfig {
    /// What is subtracted.
    pub baseline: Baseline,
    /// What it is divided by.
    pub scale: Scale,
    /// Groups of one response.
    pub singleton: Singleton,
    /// Which signs act.
    pub gate: Gate,
    /// A reward above this is a success (decides hard and easy, and the masks). Compared in f32, the
    /// dtype of rewards: a reward of 0.8 is not above 0.8.
    pub success_threshold: f64,
}

/// The objective per token (docs/math.md §2). ρ is the importance ratio, A the advantage.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Objective {
    /// −min(ρA, clip(ρ, 1 − low, 1 + high)·A) (PPO 1707.06347; DAPO 2503.14476).
    Clip {
        /// Lower offset; `None`: no lower bound.
        low: Option<f64>,
        /// Upper offset; `None`: no upper bound.
        high: Option<f64>,
        /// For A < 0 the loss is at most −c·A (1912.09729); `None`: off.
        dual_clip: Option<f64>,
        /// The unclipped branch uses min(ρ, d) (TRL's `delta`); `None`: off.
        ratio_cap: Option<f64>,
    },
    /// The clip with the response's ratio, exp of the mean log-ratio (2507.18071).
    Gspo {
        /// Lower offset.
        low: Option<f64>,
        /// Upper offset.
        high: Option<f64>,
        /// Upper clamp of the mean log-ratio, zero gradient beyond (verl: 10); `None`: off.
        log_ratio_max: Option<f64>,
    },
    /// −sg[clip(ρ)]·A·log_prob (2506.13585): verl bounds both sides, TRL only above.
    Cispo {
        /// Lower offset; `None`: no lower bound (TRL).
        low: Option<f64>,
        /// Upper offset.
        high: Option<f64>,
    },
    /// −(4/τ)·σ(τ(ρ − 1))·A (2511.20347).
    Sapo {
        /// τ where A > 0.
        tau_positive: f64,
        /// τ elsewhere.
        tau_negative: f64,
    },
    /// −A·log_prob (verl's `gpg`).
    Reinforce,
}

/// Which estimator of the KL divergence to the reference policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KlEstimator {
    /// log_prob − ref_log_prob.
    K1,
    /// ½(log_prob − ref_log_prob)².
    K2,
    /// e^x − x − 1 with x = ref_log_prob − log_prob.
    K3,
}

/// The KL term that is added to the loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kl {
    /// The estimator.
    pub estimator: KlEstimator,
    /// Its coefficient, at least 0.
    pub coef: f64,
    /// K3 only, verl's clamps: exponent to ±20, value to ±10, zero gradient outside.
    pub clamp: bool,
}

/// How token losses become one number (docs/math.md §3).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Aggregation {
    /// Σ over tokens / token count (DAPO).
    TokenMean,
    /// Mean over responses of the mean over a response's tokens (GRPO, GSPO).
    SeqMeanTokenMean,
    /// Mean over responses of the sum over a response's tokens.
    SeqMeanTokenSum,
    /// As `SeqMeanTokenSum`, divided by a constant (Dr.GRPO; verl's `seq-mean-token-sum-norm`).
    SeqMeanTokenSumNorm {
        /// The constant, in tokens; verl's default is the padded width.
        scale: f64,
    },
}

/// The denominator of the aggregation: a token count for [`Aggregation::TokenMean`], else a count
/// of responses, of the *global* batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Normalizer {
    /// Given by the caller; greater than 0.
    Value(f64),
    /// Counted from this batch: valid tokens, or responses with at least one valid token. Right
    /// only where this batch is the whole batch.
    FromBatch,
}

/// Which tokens the metrics look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricsScope {
    /// Tokens of active responses; nothing of inactive responses is read.
    Active,
    /// All valid tokens, as verl and TRL report.
    All,
}

/// Which slots of the gradient are written. A response is inactive if its advantage is 0 and there
/// is neither a KL nor an entropy term; none is where each token has an advantage of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gradient {
    /// All: 0 where a token does not act.
    ZeroFill,
    /// Those of the other responses: nothing is written for inactive ones.
    Untouched,
    /// From logits only: the rows of the tokens that act, densely, in the order of their slots.
    Compact,
}

/// Everything that the losses are told besides the tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Config {
    /// From rewards to advantages; unused where advantages are given.
    pub advantage: AdvantageConfig,
    /// The policy-gradient objective.
    pub objective: Objective,
    /// |log_prob − old_log_prob| is clamped to this, zero gradient outside (verl: 20); `None`: off.
    pub log_ratio_clamp: Option<f64>,
    /// The KL term, if any.
    pub kl: Option<Kl>,
    /// How token losses are summed.
    pub aggregation: Aggregation,
    /// The denominator.
    pub normalizer: Normalizer,
    /// T > 0: logits are divided by it. Log-probs that are given contain it already.
    pub temperature: f64,
    /// c of the entropy bonus: − c · (aggregated entropy) is added to the loss; 0: off. From logits
    /// only.
    pub entropy_coef: f64,
    /// Multiplies the loss and its gradient (verl's data-parallel size).
    pub loss_multiplier: f64,
    /// Multiplies the gradient only (upstream gradient, loss scaling).
    pub grad_scale: f64,
    /// Which tokens the metrics look at.
    pub metrics_scope: MetricsScope,
    /// Which slots of the gradient are written.
    pub gradient: Gradient,
}

impl Default for AdvantageConfig {
    /// QAE with K = 0.4, unbiased standard deviation + 1e-6, verl's singleton rule, gate off.
    fn default() -> Self {
        Self {
            baseline: Baseline::Quantile {
                k: 0.4,
                interpolation: Interpolation::InvertedCdf,
            },
            scale: Scale::Std {
                unbiased: true,
                epsilon: 1e-6,
            },
            singleton: Singleton::Reward,
            gate: Gate::Off,
            success_threshold: 0.5,
        }
    }
}

impl Default for Config {
    /// QAE with K = 0.4 on DAPO's loss with verl's numerics: clip 0.2 / 0.28, dual clip 3,
    /// log-ratio clamp 20, token mean over the batch, no KL, temperature 1, no entropy bonus.
    fn default() -> Self {
        Self {
            advantage: AdvantageConfig::default(),
            objective: Objective::Clip {
                low: Some(0.2),
                high: Some(0.28),
                dual_clip: Some(3.0),
                ratio_cap: None,
            },
            log_ratio_clamp: Some(20.0),
            kl: None,
            aggregation: Aggregation::TokenMean,
            normalizer: Normalizer::FromBatch,
            temperature: 1.0,
            entropy_coef: 0.0,
            loss_multiplier: 1.0,
            grad_scale: 1.0,
            metrics_scope: MetricsScope::All,
            gradient: Gradient::ZeroFill,
        }
    }
}

impl AdvantageConfig {
    /// The quantile level, where the baseline is a quantile.
    pub fn k(&self) -> Option<f64> {
        match self.baseline {
            Baseline::Quantile { k, .. } => Some(k),
            Baseline::Mean | Baseline::LeaveOneOut => None,
        }
    }

    /// What a reward has to exceed: the threshold as a reward would hold it.
    pub(crate) fn rounded_threshold(&self) -> f64 {
        f64::from(self.success_threshold as f32)
    }

    /// Whether every field is in its range and the fields fit together.
    ///
    /// # Errors
    /// [`Error::Invalid`] for k outside (0, 1), a negative or non-finite epsilon, a non-finite
    /// threshold, or a gate without a quantile baseline (the gate needs k).
    pub fn check(&self) -> Result<()> {
        if let Some(k) = self.k() {
            accept(k > 0.0 && k < 1.0, "baseline.k", "a number in (0, 1)", k)?;
        }
        if let Scale::Std { epsilon, .. } = self.scale {
            at_least_zero("epsilon", epsilon)?;
        }
        finite("success_threshold", self.success_threshold)?;
        if self.gate != Gate::Off && self.k().is_none() {
            return Err(Error::invalid(
                "gate",
                "none, since only a quantile baseline has the k that a gate needs",
                format!("{:?} with baseline {:?}", self.gate, self.baseline),
            ));
        }
        Ok(())
    }
}

impl Config {
    /// Whether every field is in its range and the fields fit together.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the first field that is not.
    pub fn check(&self) -> Result<()> {
        self.advantage.check()?;
        self.objective.check()?;
        if let Some(clamp) = self.log_ratio_clamp {
            positive("log_ratio_clamp", clamp)?;
        }
        if let Some(kl) = self.kl {
            at_least_zero("kl.coef", kl.coef)?;
        }
        if let Aggregation::SeqMeanTokenSumNorm { scale } = self.aggregation {
            positive("normalizer.loss_scale_factor", scale)?;
        }
        if let Normalizer::Value(value) = self.normalizer {
            positive("normalizer", value)?;
        }
        positive("temperature", self.temperature)?;
        finite("entropy_coef", self.entropy_coef)?;
        finite("loss_multiplier", self.loss_multiplier)?;
        finite("grad_scale", self.grad_scale)
    }
}

impl Objective {
    /// Whether the objective needs `old_log_prob` for its loss (all but [`Objective::Reinforce`]).
    pub fn uses_ratio(&self) -> bool {
        !matches!(self, Self::Reinforce)
    }

    fn check(&self) -> Result<()> {
        match *self {
            Self::Clip {
                low,
                high,
                dual_clip,
                ratio_cap,
            } => {
                clip_bounds(low, high)?;
                if let Some(c) = dual_clip {
                    let is_above = c.is_finite() && c > 1.0;
                    accept(is_above, "dual_clip", "a number above 1", c)?;
                }
                ratio_cap.map_or(Ok(()), |cap| positive("ratio_cap", cap))
            }
            Self::Gspo {
                low,
                high,
                log_ratio_max,
            } => {
                clip_bounds(low, high)?;
                log_ratio_max.map_or(Ok(()), |max| positive("seq_log_ratio_max", max))
            }
            Self::Cispo { low, high } => clip_bounds(low, high),
            Self::Sapo {
                tau_positive,
                tau_negative,
            } => {
                positive("tau_pos", tau_positive)?;
                positive("tau_neg", tau_negative)
            }
            Self::Reinforce => Ok(()),
        }
    }
}

fn clip_bounds(low: Option<f64>, high: Option<f64>) -> Result<()> {
    if let Some(low) = low {
        let is_share = (0.0..=1.0).contains(&low);
        accept(is_share, "clip_low", "a number in [0, 1]", low)?;
    }
    high.map_or(Ok(()), |high| at_least_zero("clip_high", high))
}

pub(crate) fn finite(field: &str, value: f64) -> Result<()> {
    accept(value.is_finite(), field, "a finite number", value)
}

pub(crate) fn positive(field: &str, value: f64) -> Result<()> {
    let is_positive = value.is_finite() && value > 0.0;
    accept(is_positive, field, "a finite number above 0", value)
}

fn at_least_zero(field: &str, value: f64) -> Result<()> {
    let is_ok = value.is_finite() && value >= 0.0;
    accept(is_ok, field, "a finite number, at least 0", value)
}

fn accept(is_acceptable: bool, field: &str, expected: &str, value: f64) -> Result<()> {
    if is_acceptable {
        Ok(())
    } else {
        Err(Error::invalid(field, expected, value))
    }
}
