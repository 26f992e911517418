//! Cases of the operation `advantages`.

use super::List;
use crate::config::{AdvantageConfig, Baseline, Gate, Interpolation, Scale};
use crate::error::Result;
use crate::selftest::Call;
use crate::selftest::batch::{GroupKind, groups};
use crate::selftest::random::Random;

/// Baselines x scales, then gates and the forms of groups.
pub(super) fn advantage_cases(list: &mut List) -> Result<()> {
    let std = |unbiased| Scale::Std {
        unbiased,
        epsilon: 1e-6,
    };
    for (baseline_name, baseline) in baselines() {
        for (scale_name, scale) in [
            ("unscaled", Scale::None),
            ("std", std(true)),
            ("population-std", std(false)),
        ] {
            let config = AdvantageConfig {
                baseline,
                scale,
                ..AdvantageConfig::default()
            };
            let name = format!("advantages {baseline_name} {scale_name}");
            add_advantages(list, name, GroupKind::Uniform(16), 512, config)?;
        }
    }
    for (gate_name, gate) in gates() {
        let config = AdvantageConfig {
            gate,
            ..AdvantageConfig::default()
        };
        let name = format!("advantages {gate_name}");
        add_advantages(list, name, GroupKind::Ragged(12), 300, config)?;
    }
    for (name, kind, num_responses) in group_forms() {
        let config = AdvantageConfig::default();
        add_advantages(
            list,
            format!("advantages {name}"),
            kind,
            num_responses,
            config,
        )?;
    }
    Ok(())
}

pub(super) fn baselines() -> [(&'static str, Baseline); 4] {
    let quantile = |interpolation| Baseline::Quantile {
        k: 0.4,
        interpolation,
    };
    [
        ("mean", Baseline::Mean),
        ("leave-one-out", Baseline::LeaveOneOut),
        ("quantile", quantile(Interpolation::InvertedCdf)),
        ("quantile-linear", quantile(Interpolation::Linear)),
    ]
}

pub(super) fn gates() -> [(&'static str, Gate); 3] {
    [
        ("two-regime", Gate::TwoRegime),
        ("positive-mask", Gate::PositiveMask),
        ("negative-mask", Gate::NegativeMask),
    ]
}

/// With their number of responses. 1,024 is the largest group that a warp selects from.
fn group_forms() -> [(&'static str, GroupKind, usize); 7] {
    [
        ("groups of 1", GroupKind::Uniform(1), 40),
        ("groups of 33", GroupKind::Uniform(33), 330),
        ("groups of 1024", GroupKind::Uniform(1024), 2048),
        ("groups of 1025", GroupKind::Uniform(1025), 2050),
        ("ragged groups", GroupKind::Ragged(40), 400),
        ("scattered groups", GroupKind::Ids(37), 700),
        ("a group of 5000", GroupKind::Large(5000), 5100),
    ]
}

/// Rewards from a grid with ties, one in fifty of them not finite.
fn add_advantages(
    list: &mut List,
    name: String,
    kind: GroupKind,
    num_responses: usize,
    config: AdvantageConfig,
) -> Result<()> {
    let random = &mut Random(list.cases.len() as u64);
    let groups = groups(kind, num_responses, random)?;
    let reward = |random: &mut Random| match random.below(50) {
        0 => f32::NAN,
        _ => random.pick(&[0.0, 0.0, 0.25, 0.5, 1.0]),
    };
    let rewards = (0..num_responses).map(|_| reward(random)).collect();
    list.push(
        name,
        Call::Advantages {
            rewards,
            groups,
            config,
        },
    );
    Ok(())
}
