//! The report as text: one aspect a line, the label first.

use super::report::Report;
use crate::config_json::ConfigFile;
use std::fmt::{Display, Formatter, Result};

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let mut line = |label: &str, text: String| writeln!(f, "{label:<12}{text}");
        line("batch", self.batch())?;
        line("advantage", advantage(&self.config))?;
        line("objective", objective(&self.config))?;
        line("loss", self.loss())?;
        line("gradient", format!("norm {:.6e}", self.gradient_norm))?;
        line("groups", self.groups())?;
        line("responses", self.responses())?;
        line("tokens", self.tokens())?;
        line("clipped", self.clipped())?;
        line("ratio", self.ratio())?;
        if let Some(left_out) = self.left_out() {
            line("left out", left_out)?;
        }
        line(
            "backend",
            format!("{}; {}", self.backend.name, self.backend.reason),
        )?;
        line("traffic", self.traffic())?;
        if let Some(difference) = &self.difference {
            line(
                "f64 check",
                format!(
                    "largest difference from the reference: gradient {:.1e} of its largest value, \
                     loss {:.1e}, advantage {:.1e}",
                    difference.gradient_over_largest, difference.loss, difference.advantage
                ),
            )?;
        }
        if let Some(out) = &self.out {
            line("written", out.clone())?;
        }
        Ok(())
    }
}

impl Report {
    fn batch(&self) -> String {
        let shape = match self.shape[..] {
            [rows, width] => format!("{rows} responses x {width} slots, padded"),
            _ => format!("{} responses, packed", self.responses.total),
        };
        format!("{}: {shape}, {}", self.name, self.dtype)
    }

    fn loss(&self) -> String {
        match self.kl_loss {
            None => format!("{:.9}", self.loss),
            Some(kl) => format!(
                "{:.9} (policy gradient {:.9}, KL {kl:.9} x {})",
                self.loss,
                self.pg_loss,
                self.config.kl.coef.unwrap_or_default()
            ),
        }
    }

    fn groups(&self) -> String {
        let groups = &self.groups;
        let regimes = match (groups.hard, groups.easy) {
            (Some(hard), Some(easy)) => format!("{hard} hard, {easy} easy; "),
            _ => String::new(), // only a quantile level tells hard from easy
        };
        let (total, equal) = (groups.total, groups.zero_variance);
        format!("{total}: {regimes}{equal} with all rewards equal")
    }

    fn responses(&self) -> String {
        let responses = &self.responses;
        format!(
            "{}: {} positive, {} zero, {} negative advantage; {} active ({})",
            responses.total,
            responses.positive,
            responses.zero,
            responses.negative,
            responses.active,
            percent(responses.active as f64 / responses.total.max(1) as f64),
        )
    }

    fn tokens(&self) -> String {
        let tokens = &self.tokens;
        let skipped = percent(tokens.skipped_share);
        let read = match self.config.metrics_scope.as_deref() {
            Some("all") if tokens.skipped_share > 0.0 => " (read for the metrics only)",
            _ => "",
        };
        format!(
            "{} valid: {} active; {skipped} of the work skipped{read}",
            tokens.valid, tokens.active
        )
    }

    fn clipped(&self) -> String {
        let ratios = &self.ratios;
        format!(
            "{} of {} tokens: {} above, {} below; {} held by dual clip",
            percent(ratios.clipped_above + ratios.clipped_below),
            ratios.tokens,
            percent(ratios.clipped_above),
            percent(ratios.clipped_below),
            percent(ratios.dual_clipped),
        )
    }

    fn ratio(&self) -> String {
        let ratios = &self.ratios;
        match (ratios.min_ratio, ratios.max_ratio) {
            (Some(min), Some(max)) => format!(
                "{} to {}; approximate KL from the old policy {:.6} nats",
                significant(min),
                significant(max),
                ratios.approx_kl
            ),
            _ => "none: no tokens in scope or no old log-probs".to_string(),
        }
    }

    fn left_out(&self) -> Option<String> {
        let counts = &self.left_out;
        let parts = [
            (counts.rewards, "rewards not finite"),
            (
                counts.tokens,
                "tokens with a ratio, loss or gradient not finite",
            ),
            (counts.rows, "rows out of range"),
        ];
        let parts = parts.iter().filter(|(count, _)| *count > 0);
        let parts: Vec<_> = parts
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        (!parts.is_empty()).then(|| parts.join(", "))
    }

    fn traffic(&self) -> String {
        let backend = &self.backend;
        let bytes = backend.bytes_moved;
        match (backend.seconds, backend.gigabytes_per_second) {
            (Some(seconds), Some(rate)) => {
                format!("{bytes} bytes in {:.3} ms, {rate:.3} GB/s", seconds * 1e3)
            }
            _ => format!("{bytes} bytes"),
        }
    }
}

fn advantage(config: &ConfigFile) -> String {
    let kind = config.baseline.kind.as_deref().unwrap_or_default();
    let mut text = match (config.baseline.k, &config.baseline.interpolation) {
        (Some(k), Some(interpolation)) => format!("reward - {kind} {k} ({interpolation})"),
        _ => format!("reward - {kind}"),
    };
    if let (Some(scale), Some(epsilon)) = (&config.scale, config.epsilon) {
        text += &format!(", over {scale} + {epsilon:e}");
    }
    if let Some(gate) = config.gate.as_deref().filter(|gate| *gate != "none") {
        text += &format!(", gate {gate}");
    }
    text
}

fn objective(config: &ConfigFile) -> String {
    let mut text = config.loss.clone().unwrap_or_default();
    let params = &config.loss_params;
    for (name, value) in [
        ("low", config.clip_low.flatten()),
        ("high", config.clip_high.flatten()),
        ("dual clip", config.dual_clip.flatten()),
        ("ratio cap", config.ratio_cap.flatten()),
        ("tau", params.tau_pos),
        ("and", params.tau_neg),
    ] {
        if let Some(value) = value {
            text += &format!(" {name} {value}");
        }
    }
    text += &format!(", {}", config.aggregation.as_deref().unwrap_or_default());
    let normalizer = &config.normalizer;
    let count = normalizer.batch_num_tokens.or(normalizer.global_batch_size);
    text + &match count.flatten() {
        Some(count) => format!(" over {count} (given)"),
        None => " over this batch".to_string(),
    }
}

fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// Four significant digits, whatever the size: ratios reach e^±20.
fn significant(value: f64) -> String {
    if (1e-3..1e4).contains(&value) {
        format!("{value:.4}")
    } else {
        format!("{value:.3e}")
    }
}
