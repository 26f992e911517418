//! How far a backend may be from expected values.

use qae::{Aggregation, Config, DType};
use serde_json::Value;

/// What a backend may differ from expected values, relative to the largest value of a tensor.
#[derive(Debug, Clone, Copy)]
pub struct Tolerance {
    /// At least this.
    pub floor: f64,
    /// And this many times the error of the reference packages when they ran in float32.
    float32_errors: f64,
    /// And this, in nats, for a mean of log-ratios.
    log_ratio: f64,
    /// And this, for a loss, whose terms are around 1 and may cancel: not relative.
    cancellation: f64,
    /// Whether the gradient of logits is rounded to their dtype.
    rounds: bool,
}

impl Tolerance {
    /// f64 against f64: most cases agree to 1e-15, sums with cancellation to 1e-13.
    pub const DOUBLE: Self = Self {
        floor: 1e-12,
        float32_errors: 0.0,
        log_ratio: 0.0,
        cancellation: 2e-14,
        rounds: false,
    };

    /// f32 kernels against f64: twenty times what the packages themselves lose in float32, whose
    /// sums are in another order, and some ulps of expf. For metrics the packages' loss is unknown:
    /// fractions of tokens are exact counts over f64, for which the floor is ample; a mean of
    /// log-ratios of both signs cancels, and each term is rounded to 2⁻²⁴ of up to 1 nat.
    pub const SINGLE: Self = Self {
        floor: 2e-6,
        float32_errors: 20.0,
        log_ratio: 6e-8,
        cancellation: 0.0,
        rounds: true,
    };

    /// What rounding to `dtype` adds for the tensor `name`: half the distance of two neighbors.
    pub fn rounding(self, name: &str, dtype: DType) -> f64 {
        let half_ulp = match dtype {
            DType::F64 | DType::F32 => 0.0, // in the floor
            DType::Bf16 => 1.0 / 256.0,
            DType::F16 => 1.0 / 2048.0,
        };
        let rounded = self.rounds && name.starts_with("dlogits");
        if rounded { half_ulp } else { 0.0 }
    }

    /// Of the tensor `name` of the case that `case` describes, whose largest value is `largest`.
    pub fn of(self, name: &str, largest: f64, case: &Value, config: &Config) -> f64 {
        let error = |key: &str| {
            let errors = &case["float32_error_of_the_reference"];
            errors[key].as_f64().unwrap_or(0.0)
        };
        let float32_error = match name {
            "advantage" | "baseline" => error("advantage_max_abs") / largest,
            "loss" | "pg_loss" | "metrics.kl_loss" => {
                let terms = self.cancellation + verl_epsilon(name, case, config);
                let error = self.float32_errors * error("loss_abs") + terms;
                return self.floor + error / largest;
            }
            // From logits, a ratio is off by what its log-prob is off by.
            "dlogp" => error("dlogp_max_over_largest") + error("logp_max_abs"),
            "logp" => error("logp_max_abs") / largest,
            "entropy" => error("entropy_max_abs") / largest,
            "dlogits" | "dlogits_row_l1" | "dlogits_row_l2" | "dlogits_row_sum" => {
                error("dlogits_max_over_largest")
            }
            "dlogits_columns" => error("dlogits_max_abs") / largest,
            "metrics.ppo_kl" => {
                let log_ratio = self.log_ratio + self.float32_errors * error("logp_max_abs");
                return self.floor + log_ratio / largest + verl_epsilon(name, case, config);
            }
            _ => 0.0, // counts of tokens, which float32 gets right away from the clip bounds
        };
        let float32_error = if float32_error.is_nan() {
            0.0
        } else {
            float32_error
        };
        let relative = self.floor + self.float32_errors * float32_error;
        relative + verl_epsilon(name, case, config)
    }
}

/// verl adds 1e-8 to the token counts of masked means; this crate does not.
fn verl_epsilon(name: &str, case: &Value, config: &Config) -> f64 {
    let mean_over_batch = [
        "metrics.pg_clipfrac",
        "metrics.pg_clipfrac_lower",
        "metrics.ppo_kl",
    ];
    let of_loss =
        name.starts_with("dlog") || ["loss", "pg_loss", "metrics.kl_loss"].contains(&name);
    if mean_over_batch.contains(&name) {
        let slots = case["shape"]["tokens"].as_f64().unwrap_or(200.0);
        1e-8 / (0.5 * slots) // at least half of the slots are tokens
    } else if of_loss && config.aggregation == Aggregation::SeqMeanTokenMean {
        1e-8 // at least one token
    } else {
        0.0
    }
}
