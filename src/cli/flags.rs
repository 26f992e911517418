//! The flags of `qae step` that override the configuration.

use crate::config_json::{BaselineFile, ConfigFile, KlFile, LossParamsFile, NormalizerFile};
use clap::Args;
use std::str::FromStr;

/// The fields of the configuration, as errors name them, and the flags that set them.
const FLAGS: &[(&str, &str)] = &[
    ("baseline.k", "--k"),
    ("baseline.kind", "--baseline"),
    ("baseline.interpolation", "--interpolation"),
    ("scale", "--scale"),
    ("epsilon", "--epsilon"),
    ("singleton", "--singleton"),
    ("gate", "--gate"),
    ("success_threshold", "--success-threshold"),
    ("loss", "--loss"),
    ("clip_low", "--clip-low"),
    ("clip_high", "--clip-high"),
    ("dual_clip", "--dual-clip"),
    ("ratio_cap", "--ratio-cap"),
    ("log_ratio_clamp", "--log-ratio-clamp"),
    ("loss_params.seq_log_ratio_max", "--seq-log-ratio-max"),
    ("loss_params.tau_pos", "--tau-pos"),
    ("loss_params.tau_neg", "--tau-neg"),
    ("aggregation", "--aggregation"),
    ("normalizer.batch_num_tokens", "--normalizer-tokens"),
    ("normalizer.global_batch_size", "--normalizer-sequences"),
    ("normalizer.loss_scale_factor", "--loss-scale-factor"),
    ("normalizer.dp_size", "--dp-size"),
    ("grad_scale", "--grad-scale"),
    ("kl.kind", "--kl"),
    ("kl.coef", "--kl-coef"),
    ("kl.clamp", "--kl-clamp"),
    ("rollout_is_weights", "--rollout-is-weights"),
    ("metrics_scope", "--metrics-scope"),
    ("temperature", "--temperature"),
    ("entropy_coef", "--entropy-coef"),
    ("inactive_gradient", "--gradient"),
];

/// The flag that sets the field `path` of the configuration.
pub(super) fn flag_of(path: &str) -> Option<&'static str> {
    let found = FLAGS.iter().find(|(field, _)| *field == path);
    found.map(|(_, flag)| *flag)
}

/// A number, or `none`, which turns off what the number would set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OrNone(pub Option<f64>);

impl FromStr for OrNone {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        let number = text.parse().map_err(|_| "expected a number or `none`")?;
        Ok(Self(Some(number)))
    }
}

/// One flag for each field of the configuration.
#[derive(Debug, Args)]
#[command(next_help_heading = "Configuration")]
pub struct Overrides {
    /// Quantile level in (0, 1), for hard and easy groups; makes the baseline a quantile.
    #[arg(long)]
    k: Option<f64>,
    /// quantile, mean, leave_one_out
    #[arg(long)]
    baseline: Option<String>,
    /// Of the quantile: inverted_cdf, linear
    #[arg(long)]
    interpolation: Option<String>,
    /// std_unbiased, std_population, none
    #[arg(long)]
    scale: Option<String>,
    /// Added to the standard deviation.
    #[arg(long)]
    epsilon: Option<f64>,
    /// Groups of one response: reward, zero
    #[arg(long)]
    singleton: Option<String>,
    /// none, two_regime, positive_mask, negative_mask
    #[arg(long)]
    gate: Option<String>,
    /// A reward above this is a success.
    #[arg(long)]
    success_threshold: Option<f64>,
    /// ppo_clip, gspo, cispo, sapo, gpg
    #[arg(long, visible_alias = "objective")]
    loss: Option<String>,
    /// Lower clip offset, or none.
    #[arg(long)]
    clip_low: Option<OrNone>,
    /// Upper clip offset, or none.
    #[arg(long)]
    clip_high: Option<OrNone>,
    /// Dual-clip bound, or none.
    #[arg(long)]
    dual_clip: Option<OrNone>,
    /// Largest ratio of the unclipped branch, or none.
    #[arg(long)]
    ratio_cap: Option<OrNone>,
    /// Clamp of the log-ratio in nats, or none.
    #[arg(long)]
    log_ratio_clamp: Option<OrNone>,
    /// Of gspo: upper clamp of the mean log-ratio in nats, or none.
    #[arg(long)]
    seq_log_ratio_max: Option<OrNone>,
    /// Of sapo: temperature where A > 0.
    #[arg(long)]
    tau_pos: Option<f64>,
    /// Of sapo: temperature elsewhere.
    #[arg(long)]
    tau_neg: Option<f64>,
    /// token-mean, seq-mean-token-mean, seq-mean-token-sum, seq-mean-token-sum-norm
    #[arg(long)]
    aggregation: Option<String>,
    /// Tokens of the global batch, or none: those of this one.
    #[arg(long)]
    normalizer_tokens: Option<OrNone>,
    /// Responses of the global batch, or none: those of this one.
    #[arg(long)]
    normalizer_sequences: Option<OrNone>,
    /// Of seq-mean-token-sum-norm: the constant, or none: the padded width.
    #[arg(long)]
    loss_scale_factor: Option<OrNone>,
    /// Multiplies the loss.
    #[arg(long)]
    dp_size: Option<f64>,
    /// Multiplies the gradient only.
    #[arg(long)]
    grad_scale: Option<f64>,
    /// none, k1, k2, k3
    #[arg(long)]
    kl: Option<String>,
    /// Coefficient of the KL term.
    #[arg(long)]
    kl_coef: Option<f64>,
    /// Of k3: verl's clamps.
    #[arg(long, value_name = "BOOL")]
    kl_clamp: Option<bool>,
    /// Whether the batch's rollout weights are used.
    #[arg(long, value_name = "BOOL")]
    rollout_is_weights: Option<bool>,
    /// Tokens that the metrics cover: all, active
    #[arg(long)]
    metrics_scope: Option<String>,
    /// Divides the logits; refused with log-probs, which contain it already.
    #[arg(long)]
    temperature: Option<f64>,
    /// Coefficient of the entropy bonus, from logits; 0: off.
    #[arg(long, visible_alias = "entropy-coeff")]
    entropy_coef: Option<f64>,
    /// Gradient of inactive responses: zero_fill, untouched, or from logits compact
    #[arg(long, visible_alias = "inactive-gradient", value_name = "MODE")]
    gradient: Option<String>,
}

impl Overrides {
    /// The flags as the last layer of the configuration.
    pub fn to_config_file(&self) -> ConfigFile {
        let switch = |number: Option<OrNone>| number.map(|number| number.0);
        ConfigFile {
            baseline: self.baseline_file(),
            scale: self.scale.clone(),
            epsilon: self.epsilon,
            singleton: self.singleton.clone(),
            gate: self.gate.clone(),
            success_threshold: self.success_threshold,
            loss: self.loss.clone(),
            ratio: None,
            clip_low: switch(self.clip_low),
            clip_high: switch(self.clip_high),
            dual_clip: switch(self.dual_clip),
            ratio_cap: switch(self.ratio_cap),
            log_ratio_clamp: switch(self.log_ratio_clamp),
            aggregation: self.aggregation.clone(),
            normalizer: NormalizerFile {
                dp_size: self.dp_size,
                batch_num_tokens: switch(self.normalizer_tokens),
                global_batch_size: switch(self.normalizer_sequences),
                loss_scale_factor: switch(self.loss_scale_factor),
            },
            kl: KlFile {
                kind: self.kl.clone(),
                coef: self.kl_coef,
                clamp: self.kl_clamp,
            },
            rollout_is_weights: self.rollout_is_weights,
            loss_params: LossParamsFile {
                tau_pos: self.tau_pos,
                tau_neg: self.tau_neg,
                seq_log_ratio_max: switch(self.seq_log_ratio_max),
                ..LossParamsFile::default()
            },
            temperature: self.temperature,
            entropy_coef: self.entropy_coef,
            grad_scale: self.grad_scale,
            metrics_scope: self.metrics_scope.clone(),
            inactive_gradient: self.gradient.clone(),
        }
    }

    /// Only a quantile has a k and an interpolation, so that naming one of them names it.
    fn baseline_file(&self) -> BaselineFile {
        let implied = self.k.is_some() || self.interpolation.is_some();
        BaselineFile {
            kind: (self.baseline.clone()).or(implied.then(|| "quantile".to_string())),
            k: self.k,
            interpolation: self.interpolation.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{FLAGS, Overrides};
    use clap::{Args, Command};

    #[test]
    fn every_flag_is_in_the_table() {
        let command = Overrides::augment_args(Command::new("step"));
        let mut flags: Vec<String> = command
            .get_arguments()
            .filter_map(|argument| argument.get_long().map(|long| format!("--{long}")))
            .collect();
        let mut table: Vec<_> = FLAGS.iter().map(|(_, flag)| flag.to_string()).collect();
        flags.sort();
        table.sort();
        assert_eq!(flags, table);
    }
}
