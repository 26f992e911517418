//! Cases of the operation `loss_from_log_probs`.

use super::advantages::{baselines, gates};
use super::{AGGREGATIONS, DTYPES, LAYOUTS, List, PLAIN, SOURCES, WEIGHTS, kls, objectives};
use crate::batch::DType;
use crate::config::{
    AdvantageConfig, Config, Gradient, MetricsScope, Normalizer, Objective, Singleton,
};
use crate::error::Result;
use crate::selftest::batch::{Description, GroupKind, SourceKind};

/// Every instance of the kernels: objective x extra tensors or none x f32 or 16 bits x tiles (token
/// mean) or whole rows (the mean over a masked response; GSPO always).
pub(super) fn variant_cases(list: &mut List) -> Result<()> {
    for (objective_name, objective) in objectives() {
        for (kl_name, kl) in [kls()[0], kls()[1]] {
            for (dtype_name, dtype) in [DTYPES[0], DTYPES[1]] {
                for (aggregation_name, aggregation) in [AGGREGATIONS[0], AGGREGATIONS[1]] {
                    let config = Config {
                        objective,
                        kl,
                        aggregation,
                        ..Config::default()
                    };
                    let name = format!(
                        "variant {objective_name} {kl_name} {dtype_name} {aggregation_name}"
                    );
                    list.add(name, Description { dtype, ..PLAIN }, config)?;
                }
            }
        }
    }
    Ok(())
}

/// Objectives x KL terms; aggregations, weights, layouts and dtypes take turns.
pub(super) fn objective_cases(list: &mut List) -> Result<()> {
    let mut turn = 0;
    for (objective_name, objective) in objectives() {
        for (kl_name, kl) in kls() {
            let (aggregation_name, aggregation) = AGGREGATIONS[turn % AGGREGATIONS.len()];
            let (layout_name, layout) = LAYOUTS[turn % LAYOUTS.len()];
            let (dtype_name, dtype) = DTYPES[turn % DTYPES.len()];
            let description = Description {
                layout,
                dtype,
                weight: WEIGHTS[turn / 2 % WEIGHTS.len()].1,
                source: SOURCES[turn / 4 % SOURCES.len()].1,
                ..PLAIN
            };
            let config = Config {
                objective,
                kl,
                aggregation,
                ..Config::default()
            };
            let name =
                format!("{objective_name} {kl_name} {aggregation_name} {layout_name} {dtype_name}");
            list.add(name, description, config)?;
            turn += 1;
        }
        for (aggregation_name, aggregation) in AGGREGATIONS {
            let config = Config {
                objective,
                aggregation,
                ..Config::default()
            };
            list.add(
                format!("{objective_name} {aggregation_name}"),
                PLAIN,
                config,
            )?;
        }
    }
    Ok(())
}

/// Layouts x dtypes, with the gradient in f32 and in the dtype of the log-probs.
pub(super) fn tensor_cases(list: &mut List) -> Result<()> {
    for (layout_name, layout) in LAYOUTS {
        for (dtype_name, dtype) in DTYPES {
            let description = Description {
                layout,
                dtype,
                ..PLAIN
            };
            let name = format!("{layout_name} {dtype_name}");
            list.add(name.clone(), description, Config::default())?;
            if dtype != DType::F32 {
                let name = format!("{name} gradient in {dtype_name}");
                list.add_with(name, description, Config::default(), true)?;
            }
        }
    }
    Ok(())
}

/// Advantage sources x weights x aggregations by whole rows or by tiles.
pub(super) fn source_cases(list: &mut List) -> Result<()> {
    for (source_name, source) in SOURCES {
        for (weight_name, weight) in WEIGHTS {
            for (aggregation_name, aggregation) in &AGGREGATIONS[..2] {
                let description = Description {
                    source,
                    weight,
                    ..PLAIN
                };
                let config = Config {
                    aggregation: *aggregation,
                    ..Config::default()
                };
                let name = format!("{source_name} {weight_name} {aggregation_name}");
                list.add(name, description, config)?;
            }
        }
    }
    Ok(())
}

/// Groups, gates and baselines inside the fused launch, and the second launch for large groups.
pub(super) fn group_cases(list: &mut List) -> Result<()> {
    for (name, kind) in [
        ("groups of 1", GroupKind::Uniform(1)),
        ("ragged groups", GroupKind::Ragged(9)),
        ("scattered groups", GroupKind::Ids(5)),
        ("a micro-batch of groups of 1000", GroupKind::Large(1000)),
        ("a micro-batch of groups of 2600", GroupKind::Large(2600)),
    ] {
        let description = Description {
            source: SourceKind::Rewards(kind),
            ..PLAIN
        };
        list.add(format!("fused {name}"), description, Config::default())?;
    }
    let changed = |advantage| Config {
        advantage,
        ..Config::default()
    };
    for (name, baseline) in baselines() {
        let config = AdvantageConfig {
            baseline,
            ..AdvantageConfig::default()
        };
        list.add(format!("fused {name}"), PLAIN, changed(config))?;
    }
    for (name, gate) in gates() {
        let config = AdvantageConfig {
            gate,
            ..AdvantageConfig::default()
        };
        list.add(format!("fused {name}"), PLAIN, changed(config))?;
    }
    let alone = Description {
        source: SourceKind::Rewards(GroupKind::Uniform(1)),
        ..PLAIN
    };
    let zero = AdvantageConfig {
        singleton: Singleton::Zero,
        ..AdvantageConfig::default()
    };
    list.add("fused singletons at 0".to_string(), alone, changed(zero))
}

/// Rows and batches from nothing to several blocks.
pub(super) fn shape_cases(list: &mut List) -> Result<()> {
    for (num_rows, width) in [
        (0, 0),
        (3, 0),
        (1, 1),
        (2, 31),
        (40, 33),
        (5, 1025),
        (3, 5000),
        (300, 64),
    ] {
        for (objective_name, objective) in [objectives()[0], objectives()[3]] {
            for (layout_name, layout) in [LAYOUTS[1], LAYOUTS[4]] {
                let description = Description {
                    num_rows,
                    width,
                    layout,
                    source: SourceKind::PerResponse,
                    ..PLAIN
                };
                let config = Config {
                    objective,
                    ..Config::default()
                };
                let name = format!("{objective_name} {num_rows} x {width} {layout_name}");
                list.add(name, description, config)?;
            }
        }
    }
    Ok(())
}

/// Normalizers, scopes, what is inactive and what is not finite.
pub(super) fn option_cases(list: &mut List) -> Result<()> {
    let plain = Config::default();
    let scaled = Config {
        normalizer: Normalizer::Value(1234.5),
        loss_multiplier: 8.0,
        grad_scale: 0.5,
        ..plain
    };
    list.add("normalizer and scales given".to_string(), PLAIN, scaled)?;
    for scope in [MetricsScope::Active, MetricsScope::All] {
        for inactive in [Gradient::ZeroFill, Gradient::Untouched] {
            let config = Config {
                metrics_scope: scope,
                gradient: inactive,
                ..plain
            };
            let description = Description {
                source: SourceKind::PerResponse,
                has_infinities: true,
                ..PLAIN
            };
            let name = format!("metrics {scope:?} gradient {inactive:?}");
            list.add(name, description, config)?;
        }
    }
    let inactive = Description {
        source: SourceKind::Zero,
        ..PLAIN
    };
    list.add("all inactive".to_string(), inactive, plain)?;
    for (name, objective) in objectives() {
        let description = Description {
            source: SourceKind::PerResponse,
            has_infinities: true,
            ..PLAIN
        };
        let config = Config { objective, ..plain };
        list.add(format!("{name} infinities"), description, config)?;
    }
    let on_policy = Description {
        has_old: false,
        ..PLAIN
    };
    let reinforce = Config {
        objective: Objective::Reinforce,
        ..plain
    };
    list.add(
        "reinforce without old log-probs".to_string(),
        on_policy,
        reinforce,
    )
}
