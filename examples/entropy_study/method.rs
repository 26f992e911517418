//! The ways of computing advantages that are compared.

use qae::{AdvantageConfig, AutoKConfig, Baseline, Config, Gate, Interpolation, Objective};

/// One of them.
pub struct Method {
    pub name: String,
    advantage: AdvantageConfig,
    clip_high: f64,
    /// K moves with the entropy.
    pub auto_k: Option<AutoKConfig>,
}

impl Method {
    /// `gains`: of automatic K, a method each.
    pub fn all(gains: &[f64]) -> Vec<Self> {
        let mean = AdvantageConfig {
            baseline: Baseline::Mean,
            ..AdvantageConfig::default()
        };
        let masked = |gate| AdvantageConfig {
            gate,
            ..quantile(0.4)
        };
        let mut all = vec![
            Self::new("mean, clip high 0.28", mean),
            Self {
                clip_high: 0.2,
                ..Self::new("mean, clip high 0.20", mean)
            },
            Self::new("QAE K = 0.2", quantile(0.2)),
            Self::new("QAE K = 0.4", quantile(0.4)),
            Self::new("QAE K = 0.6", quantile(0.6)),
            Self::new("QAE K = 0.8", quantile(0.8)),
            Self::new("POS-MASK", masked(Gate::PositiveMask)),
            Self::new("NEG-MASK", masked(Gate::NegativeMask)),
        ];
        all.extend(gains.iter().map(|&gain| {
            let auto_k = AutoKConfig {
                gain,
                ..AutoKConfig::default()
            };
            let name = if gain == AutoKConfig::default().gain {
                "automatic K".to_string()
            } else {
                format!("automatic K, gain {gain}")
            };
            Self {
                auto_k: Some(auto_k),
                ..Self::new(&name, quantile(0.4))
            }
        }));
        all
    }

    fn new(name: &str, advantage: AdvantageConfig) -> Self {
        Self {
            name: name.to_string(),
            advantage,
            clip_high: 0.28,
            auto_k: None,
        }
    }

    /// DAPO's loss, with this method's advantages at level `k` where that is automatic.
    pub fn config(&self, k: Option<f64>) -> Config {
        Config {
            advantage: k.map_or(self.advantage, quantile),
            objective: Objective::Clip {
                low: Some(0.2),
                high: Some(self.clip_high),
                dual_clip: None,
                ratio_cap: None,
            },
            metrics_scope: qae::MetricsScope::Active,
            ..Config::default()
        }
    }
}

fn quantile(k: f64) -> AdvantageConfig {
    AdvantageConfig {
        baseline: Baseline::Quantile {
            k,
            interpolation: Interpolation::InvertedCdf,
        },
        ..AdvantageConfig::default()
    }
}
