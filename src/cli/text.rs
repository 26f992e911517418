//! The report as text: one aspect a line, the label first.

use super::difference::Difference;
use super::printable::{exact, fixed, printable};
use super::report::{Entropy, Report};
use crate::config_json::ConfigFile;
use crate::io::Level;
use std::fmt::{Display, Formatter, Result};

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let mut line = |label: &str, text: String| writeln!(f, "{label:<12}{}", printable(&text));
        line("batch", self.batch())?;
        line("advantage", advantage(&self.config))?;
        line("objective", objective(&self.config))?;
        line("loss", self.loss())?;
        line("gradient", self.gradient())?;
        if let Some(entropy) = &self.entropy {
            line("entropy", entropy_by_sign(entropy))?;
        }
        line("groups", self.groups())?;
        line("responses", self.responses())?;
        line("tokens", self.tokens())?;
        line("clipped", self.clipped())?;
        line("ratio", self.ratio())?;
        if let Some(left_out) = self.left_out() {
            line("left out", left_out)?;
        }
        if !self.not_read.is_empty() {
            line("not read", self.not_read())?;
        }
        line(
            "backend",
            format!("{}; {}", self.backend.name, self.backend.reason),
        )?;
        line("traffic", self.traffic())?;
        if let Some(difference) = &self.difference {
            line("f64 check", check(difference))?;
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
        let of = match self.vocab_size {
            None => String::new(),
            Some(vocab_size) => {
                let temperature = exact(self.config.temperature.unwrap_or(1.0));
                format!(" logits over {vocab_size} tokens at temperature {temperature}")
            }
        };
        format!("{}: {shape}, {}{of}", self.name, self.dtype)
    }

    fn loss(&self) -> String {
        let loss = fixed(self.loss, 9);
        let mut terms = String::new();
        if let Some(kl) = self.kl_loss {
            let coef = exact(self.config.kl.coef.unwrap_or_default());
            terms += &format!(", KL {} x {coef}", fixed(kl, 9));
        }
        let coef = self.config.entropy_coef.filter(|coef| *coef != 0.0);
        if let (Some(entropy), Some(coef)) = (&self.entropy, coef) {
            terms += &format!(", entropy {} x {}", fixed(entropy.loss, 9), exact(-coef));
        }
        match terms.as_str() {
            "" => loss,
            terms => format!("{loss} (policy gradient {}{terms})", fixed(self.pg_loss, 9)),
        }
    }

    fn gradient(&self) -> String {
        let log_probs = self.gradient_norm;
        match self.logits_gradient_norm {
            None => format!("norm {log_probs:.6e}"),
            Some(logits) => format!("norm {logits:.6e} of logits, {log_probs:.6e} of log-probs"),
        }
    }

    fn not_read(&self) -> String {
        let other = match self.level {
            Level::LogProbs => "logits",
            Level::Logits => "log-probs",
        };
        let explain = |name: &&str| match *name {
            "temperature" => "temperature (log-probs contain it)".to_string(),
            name => format!("{name} (--from {other} starts from them)"),
        };
        let names: Vec<_> = self.not_read.iter().map(explain).collect();
        names.join("; ")
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
                "{} to {}; approximate KL from the old policy {} nats",
                significant(min),
                significant(max),
                fixed(ratios.approx_kl, 6)
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
                "tokens with a log-prob, ratio, loss or gradient not finite",
            ),
            (counts.rows, "rows or token ids out of range"),
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

fn entropy_by_sign(entropy: &Entropy) -> String {
    let Some(mean) = entropy.mean else {
        return "none: no tokens in scope".to_string();
    };
    let signs = [
        ("positive", entropy.positive),
        ("zero", entropy.zero),
        ("negative", entropy.negative),
    ];
    let by_sign = signs.map(|(sign, mean)| match mean {
        Some(mean) => format!("{} with {sign}", fixed(mean, 6)),
        None => format!("none with {sign}"),
    });
    format!(
        "mean {} nats over {} tokens: {} advantage",
        fixed(mean, 6),
        entropy.tokens,
        by_sign.join(", ")
    )
}

fn check(difference: &Difference) -> String {
    let over_logits = difference.logits_gradient_over_largest;
    let gradient = over_logits.unwrap_or(difference.gradient_over_largest);
    let mut text = format!(
        "largest difference from the reference: gradient {gradient:.1e} of its largest value"
    );
    for (name, value) in [
        ("log-probs", difference.log_prob),
        ("entropy", difference.entropy),
        ("loss", Some(difference.loss)),
        ("advantage", Some(difference.advantage)),
    ] {
        if let Some(value) = value {
            text += &format!(", {name} {value:.1e}");
        }
    }
    text
}

fn advantage(config: &ConfigFile) -> String {
    let kind = config.baseline.kind.as_deref().unwrap_or_default();
    let mut text = match (config.baseline.k, &config.baseline.interpolation) {
        (Some(k), Some(interpolation)) => format!("reward - {kind} {} ({interpolation})", exact(k)),
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
            text += &format!(" {name} {}", exact(value));
        }
    }
    text += &format!(", {}", config.aggregation.as_deref().unwrap_or_default());
    let normalizer = &config.normalizer;
    let count = normalizer.batch_num_tokens.or(normalizer.global_batch_size);
    text + &match count.flatten() {
        Some(count) => format!(" over {} (given)", exact(count)),
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
