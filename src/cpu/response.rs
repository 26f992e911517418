//! One response of `loss_from_log_probs`, block after block of its tokens.

use super::block::{BLOCK, Block};
use super::policy::{Cispo, Gspo, Reinforce, Sapo};
use super::simd::{Work, widest};
use crate::batch::Element;
use crate::config::{Config, Gradient, MetricsScope, Objective};
use crate::metrics::Metrics;
use crate::reference::{Call, Clip, Ratio, Response, begin, is_gspo};

/// [`crate::reference`]'s `response`, with the gradient rounded once.
pub(super) fn response<D: Element>(
    call: &Call<'_>,
    row: usize,
    gradient: &mut [D],
    block: &mut Block,
) -> Metrics {
    let (mut metrics, response) = begin(call, row);
    let acts = call.acts(row);
    let length = match &response {
        // Without a token, its weight may have a denominator of 0.
        Some(response) if response.length > 0 => response.slots.length,
        _ => 0,
    };
    if let Some(response) = response.filter(|_| length > 0) {
        let row = Row::new(&response, block);
        for start in (0..length).step_by(BLOCK) {
            let len = BLOCK.min(length - start);
            widest(Step {
                row: &row,
                tokens: start..start + len,
                block,
                metrics: &mut metrics,
            });
            if acts {
                let values = &mut gradient[start..start + len];
                let wide = &block.d_log_prob()[..len];
                widest(Round { wide, values });
            }
        }
        metrics.pg_loss *= row.weight;
        metrics.kl_loss *= row.weight;
    }
    let written = if acts { length } else { 0 };
    if acts || call.config.gradient == Gradient::ZeroFill {
        gradient[written..].fill(D::round(0.0));
    }
    metrics
}

/// What all tokens of a response have in common.
pub(super) struct Row<'a> {
    pub response: &'a Response<'a>,
    pub config: &'a Config,
    /// w_i · loss_multiplier.
    pub weight: f64,
    /// The same with the scale of the gradient.
    pub scale: f64,
    pub kl_coef: f64,
    /// ρ of the response, under GSPO.
    pub ratio: Option<Ratio>,
    /// Without a ratio, REINFORCE has a policy term, GSPO none.
    pub has_ratio: bool,
    pub has_policy: bool,
    /// What holds of tokens without an advantage, too: in the metrics' scope, read, and counted
    /// where they are not finite.
    pub all_in_scope: bool,
    pub all_read: bool,
    pub all_counted: bool,
}

impl<'a> Row<'a> {
    /// Of a response with a valid token. Writes to `block` what is the same for all its blocks.
    fn new(response: &'a Response<'a>, block: &mut Block) -> Self {
        let call: &Call<'_> = response.call;
        let config = call.config;
        let weight = call.weight(response.length);
        let all_in_scope = config.metrics_scope == MetricsScope::All;
        // GSPO's mean carries every valid token's log-ratio to the active ones.
        let is_carried = is_gspo(config) && response.active_tokens > 0;
        let all_counted = is_carried || call.acts_everywhere();
        let mut row = Self {
            response,
            config,
            weight,
            scale: weight * config.grad_scale,
            kl_coef: config.kl.map_or(0.0, |kl| kl.coef),
            ratio: None,
            has_ratio: call.tokens.old_log_prob.is_some(),
            has_policy: true,
            all_in_scope,
            all_read: all_in_scope || all_counted,
            all_counted,
        };
        block.fill(&row);
        if let Objective::Gspo { log_ratio_max, .. } = config.objective {
            let mean = widest(MeanLogRatio { response, block });
            row.has_ratio = mean.is_finite();
            row.has_policy = row.has_ratio;
            let ratio = Ratio::of_response(mean, log_ratio_max);
            row.ratio = Some(ratio);
            block.fill_ratio(ratio.value);
        }
        row
    }
}

/// Of the valid tokens, finite or not.
struct MeanLogRatio<'m> {
    response: &'m Response<'m>,
    block: &'m mut Block,
}

impl Work for MeanLogRatio<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let length = self.response.slots.length;
        let mut sum = 0.0;
        for start in (0..length).step_by(BLOCK) {
            let tokens = start..length.min(start + BLOCK);
            self.block.load_log_ratios(self.response, tokens);
            sum = self.block.add_log_ratios(sum);
        }
        sum / self.response.length as f64
    }
}

/// Adds the tokens of a block to the metrics and computes their derivatives.
struct Step<'s> {
    row: &'s Row<'s>,
    tokens: std::ops::Range<usize>,
    block: &'s mut Block,
    metrics: &'s mut Metrics,
}

impl Work for Step<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self {
            row,
            tokens,
            block,
            metrics,
        } = self;
        block.load(row, tokens);
        match row.config.objective {
            Objective::Clip {
                low,
                high,
                dual_clip,
                ratio_cap,
            } => {
                let policy = Clip::new(low, high, dual_clip, ratio_cap);
                block.combine(row, policy, metrics);
            }
            Objective::Gspo { low, high, .. } => {
                if let Some(ratio) = row.ratio {
                    let clip = Clip::new(low, high, None, None);
                    block.combine(row, Gspo { clip, ratio }, metrics);
                }
            }
            Objective::Cispo { low, high } => {
                let policy = Cispo(Clip::new(low, high, None, None));
                block.combine(row, policy, metrics);
            }
            Objective::Sapo {
                tau_positive,
                tau_negative,
            } => {
                let policy = Sapo {
                    tau_positive,
                    tau_negative,
                };
                block.combine(row, policy, metrics);
            }
            Objective::Reinforce => block.combine(row, Reinforce, metrics),
        }
        block.add(row, metrics);
    }
}

struct Round<'a, D> {
    wide: &'a [f64],
    values: &'a mut [D],
}

impl<D: Element> Work for Round<'_, D> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        D::round_all(self.wide, self.values);
    }
}
