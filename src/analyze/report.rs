//! What `qae analyze` reports. Its serde form is `--format json`.

use super::auto_k::AutoKReplay;
use super::formats::Layout;
use super::recommend::Recommendation;
use super::warnings::Warning;
use serde::Serialize;

/// Rollouts in figures. Shares are fractions of 1; `None` where nothing could be counted.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The name of the format that was found.
    pub format: &'static str,
    /// Which columns mean what.
    pub columns: Layout,
    /// Files with responses.
    pub files: usize,
    /// Bytes that were read.
    pub bytes: u64,
    /// Responses that were read; a session of an agent is one.
    pub responses: u64,
    /// Groups.
    pub groups: u64,
    /// How many groups have how many responses.
    pub group_sizes: Vec<GroupSize>,
    /// Training steps; rows without one count as one.
    pub steps: usize,
    /// Broken lines that were left out, as asked for.
    pub broken_lines: u64,
    /// Responses in the files that the trainer left out itself.
    pub untrained_responses: u64,
    /// About the rewards.
    pub rewards: Rewards,
    /// Sum of the lengths of the responses, in the unit of [`Layout::length`].
    pub total_length: u64,
    /// Groups whose rewards are all equal.
    pub zero_variance_groups: u64,
    /// Groups by their number of successes.
    pub success_histogram: Vec<Successes>,
    /// A reward above this is a success.
    pub success_threshold: f64,
    /// The mean as baseline (GRPO), to compare with.
    pub mean_baseline: Signs,
    /// One for each K, ascending.
    pub by_k: Vec<ByK>,
    /// One for each step, ascending.
    pub by_step: Vec<ByStep>,
    /// Steps without figures of their own, where there are too many.
    pub steps_left_out: usize,
    /// One for each group, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by_group: Option<Vec<ByGroup>>,
    /// Automatic K over the entropies, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_k: Option<AutoKReplay>,
    /// What may be wrong with the data, or surprise.
    pub warnings: Vec<Warning>,
    /// Which K to take.
    pub recommendation: Recommendation,
}

/// How many groups have this many responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct GroupSize {
    /// Responses.
    pub size: u64,
    /// Groups.
    pub groups: u64,
}

/// The size that most groups have, the smaller one of two.
pub(crate) fn usual_size(sizes: &[GroupSize]) -> Option<GroupSize> {
    // The last of the largest is taken.
    sizes.iter().rev().max_by_key(|size| size.groups).copied()
}

/// `1 group`, `2 groups`.
pub(crate) fn plural(count: u64, what: &str) -> String {
    let ending = if count == 1 { "" } else { "s" };
    format!("{count} {what}{ending}")
}

/// How many groups have this many successes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Successes {
    /// Responses with a finite reward.
    pub size: u64,
    /// Those of them that succeeded.
    pub successes: u64,
    /// Groups.
    pub groups: u64,
}

/// About the rewards.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rewards {
    /// At most two values, one of them a success.
    pub binary: bool,
    /// Smallest finite one.
    pub min: Option<f32>,
    /// Largest finite one.
    pub max: Option<f32>,
    /// Mean of the finite ones.
    pub mean: Option<f64>,
    /// Share of successes among responses with a finite reward.
    pub success_share: Option<f64>,
    /// Responses whose reward is absent, NaN, infinite or beyond f32.
    pub nonfinite: u64,
}

/// What a method does to the responses.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Signs {
    /// Responses with a positive advantage.
    pub positive: u64,
    /// Responses with an advantage of exactly 0.
    pub zero: u64,
    /// Responses with a negative advantage.
    pub negative: u64,
    /// Share of the responses.
    pub positive_share: f64,
    /// Share of the responses.
    pub zero_share: f64,
    /// Share of the responses.
    pub negative_share: f64,
    /// Share of the response tokens (or what stands for them) whose advantage is 0.
    pub tokens_saved_share: f64,
    /// Share of the policy's forward and backward pass that is left out with the responses whose
    /// advantage is 0: their tokens and their prompts'. Without lengths of prompts, as above.
    pub update_saved_share: f64,
    /// Mean of |advantage| over all responses.
    pub mean_abs_advantage: f64,
    /// Mean of |advantage| over those where it is not 0; `None` if there is none.
    pub mean_abs_advantage_active: Option<f64>,
}

/// What quantile advantages with a K do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ByK {
    /// The quantile level.
    pub k: f64,
    /// `inverted_cdf` or `linear`.
    pub interpolation: &'static str,
    /// Groups where failures reach up to the quantile: successes act.
    pub hard_groups: u64,
    /// The other groups: failures act.
    pub easy_groups: u64,
    /// Share of the groups.
    pub hard_share: f64,
    /// Share of the groups.
    pub easy_share: f64,
    /// What happens to the responses.
    #[serde(flatten)]
    pub signs: Signs,
    /// Groups that are hard here and easy with the next smaller K, or the reverse.
    pub flips_from_previous: Option<u64>,
    /// Other K of the list that are the same method for all group sizes here, since only ⌈K·G⌉
    /// matters. Always empty for linear interpolation, where K·(G − 1) matters.
    pub same_method_as: Vec<f64>,
    /// Groups with advantages of both signs.
    pub both_signs_groups: u64,
    /// The same with linear interpolation (the authors' code), whichever was asked for.
    pub linear_both_signs_groups: u64,
    /// With the two-regime gate. On binary rewards it changes nothing but groups of one.
    pub two_regime: Signs,
}

/// A training step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ByStep {
    /// Its number; `None` where rows have none.
    pub step: Option<i64>,
    /// Responses.
    pub responses: u64,
    /// Groups.
    pub groups: u64,
    /// Mean of the finite rewards.
    pub mean_reward: Option<f64>,
    /// Share of successes among responses with a finite reward.
    pub success_share: Option<f64>,
    /// Share of the groups whose rewards are all equal.
    pub zero_variance_share: f64,
    /// Mean entropy per token in nats, where the file has it.
    pub entropy: Option<f64>,
    /// How many groups have how many responses.
    pub group_sizes: Vec<GroupSize>,
    /// Groups by their number of successes.
    pub success_histogram: Vec<Successes>,
    /// One for each K, ascending.
    pub by_k: Vec<StepByK>,
}

/// What quantile advantages with a K do at a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepByK {
    /// The quantile level.
    pub k: f64,
    /// Hard groups.
    pub hard_groups: u64,
    /// Easy groups.
    pub easy_groups: u64,
    /// What happens to the responses.
    #[serde(flatten)]
    pub signs: Signs,
    /// Groups that are hard here and easy with the next smaller K, or the reverse.
    pub flips_from_previous: Option<u64>,
}

/// A group.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ByGroup {
    /// What names it, up to 120 characters.
    pub group: String,
    /// Its step.
    pub step: Option<i64>,
    /// Responses.
    pub n: u64,
    /// Mean of the finite rewards.
    pub mean: Option<f64>,
    /// Their standard deviation with divisor n − 1.
    pub std_unbiased: f64,
    /// Responses whose reward is above the threshold.
    pub successes: u64,
    /// The k-quantile for each K. (The baseline is 0 in groups of one.)
    pub baselines: Vec<KBaseline>,
}

/// A baseline.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct KBaseline {
    /// The quantile level.
    pub k: f64,
    /// What is subtracted from the rewards.
    pub baseline: f64,
}
