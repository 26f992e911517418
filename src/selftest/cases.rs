//! The list of cases: every kernel variant, layout, dtype and option at least once.

mod advantages;

use super::batch::{Description, GroupKind, LayoutKind, OwnedBatch, SourceKind, WeightKind};
use super::{Call, Case};
use crate::batch::DType;
use crate::config::{
    AdvantageConfig, Aggregation, Config, InactiveGradient, Kl, KlEstimator, MetricsScope,
    Normalizer, Objective, Singleton,
};
use crate::error::Result;
use advantages::{advantage_cases, baselines, gates};

const LAYOUTS: [(&str, LayoutKind); 5] = [
    ("padded", LayoutKind::Padded),
    ("masked", LayoutKind::Masked),
    ("lengths", LayoutKind::Lengths),
    ("strided", LayoutKind::Strided),
    ("packed", LayoutKind::Packed),
];

const DTYPES: [(&str, DType); 3] = [
    ("f32", DType::F32),
    ("bf16", DType::Bf16),
    ("f16", DType::F16),
];

const AGGREGATIONS: [(&str, Aggregation); 4] = [
    ("token-mean", Aggregation::TokenMean),
    ("seq-mean-token-mean", Aggregation::SeqMeanTokenMean),
    ("seq-mean-token-sum", Aggregation::SeqMeanTokenSum),
    (
        "seq-mean-token-sum-norm",
        Aggregation::SeqMeanTokenSumNorm { scale: 7.0 },
    ),
];

const SOURCES: [(&str, SourceKind); 3] = [
    ("rewards", SourceKind::Rewards(GroupKind::Uniform(8))),
    ("per-response", SourceKind::PerResponse),
    ("per-token", SourceKind::PerToken),
];

const WEIGHTS: [(&str, WeightKind); 3] = [
    ("no-weight", WeightKind::None),
    ("weight-per-token", WeightKind::PerToken),
    ("weight-per-response", WeightKind::PerResponse),
];

/// What most cases change one thing of.
const PLAIN: Description = Description {
    seed: 0,
    num_rows: 24,
    width: 70,
    layout: LayoutKind::Masked,
    dtype: DType::F32,
    weight: WeightKind::None,
    source: SourceKind::Rewards(GroupKind::Uniform(8)),
    has_old: true,
    has_infinities: false,
};

/// Every case, in the order of the table.
///
/// # Panics
/// Never: every case is built from constants that fit together, which a test proves.
pub fn cases() -> Vec<Case> {
    let mut list = List::default();
    let made = [
        advantage_cases,
        variant_cases,
        objective_cases,
        tensor_cases,
        source_cases,
        group_cases,
        shape_cases,
        option_cases,
    ]
    .into_iter()
    .try_for_each(|make| make(&mut list));
    made.expect("built-in cases are made of valid parts");
    list.cases
}

#[derive(Default)]
struct List {
    cases: Vec<Case>,
}

impl List {
    fn add(&mut self, name: String, description: Description, config: Config) -> Result<()> {
        self.add_with(name, description, config, false)
    }

    /// Every case has values of its own.
    fn add_with(
        &mut self,
        name: String,
        mut description: Description,
        config: Config,
        narrow_gradient: bool,
    ) -> Result<()> {
        description.seed = self.cases.len() as u64;
        let batch = Box::new(OwnedBatch::new(&description)?);
        self.cases.push(Case {
            name,
            call: Call::Loss {
                batch,
                config,
                narrow_gradient,
            },
        });
        Ok(())
    }
}

fn objectives() -> Vec<(&'static str, Objective)> {
    let (low, high) = (Some(0.2), Some(0.28));
    let clip = |dual_clip, ratio_cap| Objective::Clip {
        low,
        high,
        dual_clip,
        ratio_cap,
    };
    let gspo = |log_ratio_max| Objective::Gspo {
        low,
        high,
        log_ratio_max,
    };
    let sapo = Objective::Sapo {
        tau_positive: 1.0,
        tau_negative: 1.05,
    };
    vec![
        ("clip", clip(None, None)),
        ("clip-dual", clip(Some(3.0), None)),
        ("clip-capped", clip(None, Some(2.0))),
        ("gspo", gspo(None)),
        ("gspo-clamped", gspo(Some(0.25))),
        ("cispo", Objective::Cispo { low, high }),
        ("cispo-above", Objective::Cispo { low: None, high }),
        ("sapo", sapo),
        ("reinforce", Objective::Reinforce),
    ]
}

fn kls() -> [(&'static str, Option<Kl>); 5] {
    let kl = |estimator, clamp| {
        Some(Kl {
            estimator,
            coef: 0.375,
            clamp,
        })
    };
    [
        ("no-kl", None),
        ("k1", kl(KlEstimator::K1, false)),
        ("k2", kl(KlEstimator::K2, false)),
        ("k3", kl(KlEstimator::K3, false)),
        ("k3-clamped", kl(KlEstimator::K3, true)),
    ]
}

/// Every instance of the kernels: objective x extra tensors or none x f32 or 16 bits x tiles (token
/// mean) or whole rows (the mean over a masked response; GSPO always).
fn variant_cases(list: &mut List) -> Result<()> {
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
fn objective_cases(list: &mut List) -> Result<()> {
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
fn tensor_cases(list: &mut List) -> Result<()> {
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
fn source_cases(list: &mut List) -> Result<()> {
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
fn group_cases(list: &mut List) -> Result<()> {
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
fn shape_cases(list: &mut List) -> Result<()> {
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
fn option_cases(list: &mut List) -> Result<()> {
    let plain = Config::default();
    let scaled = Config {
        normalizer: Normalizer::Value(1234.5),
        loss_multiplier: 8.0,
        grad_scale: 0.5,
        ..plain
    };
    list.add("normalizer and scales given".to_string(), PLAIN, scaled)?;
    for scope in [MetricsScope::Active, MetricsScope::All] {
        for inactive in [InactiveGradient::ZeroFill, InactiveGradient::Untouched] {
            let config = Config {
                metrics_scope: scope,
                inactive_gradient: inactive,
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
