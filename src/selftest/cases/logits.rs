//! Cases of `loss_from_logits`.

use super::{AGGREGATIONS, DTYPES, LAYOUTS, List, PLAIN, SOURCES, WEIGHTS, kls, objectives};
use crate::batch::DType;
use crate::config::{Aggregation, Config, Gradient, MetricsScope, Normalizer, Objective};
use crate::error::Result;
use crate::params::RowPolicy;
use crate::selftest::batch::{Description, GroupKind, LayoutKind, SourceKind};
use crate::selftest::logits::{LogitsDescription, OwnedLogitsBatch, RowsDescription, ValuesKind};
use crate::selftest::{Call, Placement};

const POLICIES: [(&str, RowPolicy); 2] =
    [("cluster", RowPolicy::Cluster), ("block", RowPolicy::Block)];

/// What most cases change one thing of.
const LOGITS: LogitsDescription = LogitsDescription {
    tokens: Description {
        num_rows: 16,
        width: 5,
        ..PLAIN
    },
    rows: RowsDescription {
        dtype: DType::F32,
        vocab_size: 67,
        gap: 0,
        temperature: 1.0,
        values: ValuesKind::Plain,
    },
    is_indexed: false,
};

impl List {
    fn add_logits(
        &mut self,
        name: String,
        mut description: LogitsDescription,
        config: Config,
        placement: Placement,
    ) -> Result<()> {
        description.tokens.seed = self.cases.len() as u64;
        let config = Config {
            temperature: description.rows.temperature,
            ..config
        };
        let batch = Box::new(OwnedLogitsBatch::new(&description)?);
        self.push(
            format!("logits {name}"),
            Call::LossFromLogits {
                batch,
                config,
                placement,
            },
        );
        Ok(())
    }
}

/// Every instance: policies x dtypes, in every place, for rows of an odd length.
pub(super) fn instance_cases(list: &mut List) -> Result<()> {
    for (policy_name, row_policy) in POLICIES {
        for (dtype_name, dtype) in DTYPES {
            let placed = Placement {
                row_policy,
                ..Placement::default()
            };
            let (in_place, wide_token_ids) = (true, true);
            for (place, placement) in [
                ("apart", placed),
                ("in place", Placement { in_place, ..placed }),
                (
                    "in place misaligned",
                    Placement {
                        in_place,
                        misalignment: 3,
                        wide_token_ids,
                        ..placed
                    },
                ),
                (
                    "aligned differently",
                    Placement {
                        misalignment: 1,
                        gradient_misalignment: 2,
                        ..placed
                    },
                ),
            ] {
                let mut description = LOGITS;
                description.rows.dtype = dtype;
                description.rows.vocab_size = 1003;
                description.tokens.num_rows = 8;
                let config = Config {
                    entropy_coef: 0.01,
                    ..Config::default()
                };
                let name = format!("{policy_name} {dtype_name} {place}");
                list.add_logits(name, description, config, placement)?;
            }
        }
    }
    Ok(())
}

/// Rows of several chunks, of several blocks of a cluster, and beyond a block's shared memory.
pub(super) fn long_row_cases(list: &mut List) -> Result<()> {
    for (policy_name, row_policy) in POLICIES {
        for (dtype_name, dtype, vocab_size, num_slots) in [
            ("f32", DType::F32, 12_003, 9),
            ("f16", DType::F16, 20_480, 9),
            ("bf16", DType::Bf16, 151_936, 2),
            ("bf16", DType::Bf16, 262_143, 1),
        ] {
            let mut description = LOGITS;
            description.rows.dtype = dtype;
            description.rows.vocab_size = vocab_size;
            description.tokens = Description {
                num_rows: num_slots,
                width: 1,
                layout: LayoutKind::Padded,
                source: SourceKind::PerToken,
                ..description.tokens
            };
            let config = Config {
                entropy_coef: -0.25,
                ..Config::default()
            };
            let placement = Placement {
                row_policy,
                in_place: vocab_size % 2 > 0,
                ..Placement::default()
            };
            let name = format!("{policy_name} {dtype_name} {vocab_size} columns");
            list.add_logits(name, description, config, placement)?;
        }
    }
    Ok(())
}

/// Objectives x KL terms x policies; what else there is takes turns.
pub(super) fn objective_cases(list: &mut List) -> Result<()> {
    let mut turn = 0;
    for (objective_name, objective) in objectives() {
        for (kl_name, kl) in [kls()[0], kls()[1 + turn % 4]] {
            let (policy_name, row_policy) = POLICIES[turn % 2];
            let (aggregation_name, aggregation) = AGGREGATIONS[turn % AGGREGATIONS.len()];
            let (layout_name, layout) = LAYOUTS[turn % LAYOUTS.len()];
            let mut description = LOGITS;
            description.rows.dtype = DTYPES[turn % DTYPES.len()].1;
            description.rows.temperature = [0.7, 1.0, 1.5][turn % 3];
            description.tokens = Description {
                layout,
                dtype: DTYPES[turn / 2 % DTYPES.len()].1,
                weight: WEIGHTS[turn / 2 % WEIGHTS.len()].1,
                source: SOURCES[turn / 3 % SOURCES.len()].1,
                ..description.tokens
            };
            let config = Config {
                objective,
                kl,
                aggregation,
                entropy_coef: [0.0, 0.03, -0.5][turn / 3 % 3],
                ..Config::default()
            };
            let placement = Placement {
                row_policy,
                narrow_gradient: turn % 3 > 0,
                ..Placement::default()
            };
            let name = format!(
                "{objective_name} {kl_name} {aggregation_name} {layout_name} {policy_name}"
            );
            list.add_logits(name, description, config, placement)?;
            turn += 1;
        }
    }
    Ok(())
}

/// What becomes of inactive rows x layouts x scopes x policies.
pub(super) fn gradient_cases(list: &mut List) -> Result<()> {
    let mut turn = 0;
    let indexed = ("indexed", LayoutKind::Masked);
    for gradient in [Gradient::ZeroFill, Gradient::Untouched, Gradient::Compact] {
        for (layout_name, layout) in LAYOUTS.into_iter().chain([indexed]) {
            let is_indexed = layout_name == indexed.0;
            if is_indexed && gradient == Gradient::Compact {
                continue;
            }
            for scope in [MetricsScope::Active, MetricsScope::All] {
                let (policy_name, row_policy) = POLICIES[turn % 2];
                let mut description = LOGITS;
                description.is_indexed = is_indexed;
                description.rows.dtype = DTYPES[turn % DTYPES.len()].1;
                description.rows.gap = turn % 4;
                description.tokens.layout = layout;
                description.tokens.source = SOURCES[turn / 2 % SOURCES.len()].1;
                let config = Config {
                    gradient,
                    metrics_scope: scope,
                    ..Config::default()
                };
                let placement = Placement {
                    row_policy,
                    in_place: gradient != Gradient::Compact && turn % 3 > 0,
                    ..Placement::default()
                };
                let name = format!("{gradient:?} {layout_name} {scope:?} {policy_name}");
                list.add_logits(name, description, config, placement)?;
                turn += 1;
            }
        }
    }
    Ok(())
}

/// Advantage sources x weights x gradients, and large groups, which take a launch of their own.
pub(super) fn source_cases(list: &mut List) -> Result<()> {
    for (source_name, source) in SOURCES {
        for (weight_name, weight) in WEIGHTS {
            for gradient in [Gradient::ZeroFill, Gradient::Compact] {
                let mut description = LOGITS;
                description.tokens.source = source;
                description.tokens.weight = weight;
                let config = Config {
                    gradient,
                    aggregation: Aggregation::SeqMeanTokenMean,
                    ..Config::default()
                };
                let name = format!("{source_name} {weight_name} {gradient:?}");
                list.add_logits(name, description, config, Placement::default())?;
            }
        }
    }
    for (name, kind) in [
        ("ragged groups", GroupKind::Ragged(9)),
        ("scattered groups", GroupKind::Ids(5)),
        ("a micro-batch of groups of 1000", GroupKind::Large(1000)),
        ("a micro-batch of groups of 2600", GroupKind::Large(2600)),
    ] {
        for gradient in [Gradient::Untouched, Gradient::Compact] {
            let mut description = LOGITS;
            description.tokens.source = SourceKind::Rewards(kind);
            let config = Config {
                gradient,
                ..Config::default()
            };
            let name = format!("{name} {gradient:?}");
            list.add_logits(name, description, config, Placement::default())?;
        }
    }
    Ok(())
}

/// What is not finite x objectives x scopes.
pub(super) fn value_cases(list: &mut List) -> Result<()> {
    for (turn, (objective_name, objective)) in objectives().into_iter().enumerate() {
        for scope in [MetricsScope::Active, MetricsScope::All] {
            let (policy_name, row_policy) = POLICIES[turn % 2];
            let mut description = LOGITS;
            description.rows.values = ValuesKind::NotFinite;
            description.tokens.source = SourceKind::PerResponse;
            description.tokens.has_infinities = true;
            description.tokens.num_rows = 24;
            let config = Config {
                objective,
                metrics_scope: scope,
                entropy_coef: [0.0, 0.05][turn / 2 % 2],
                ..Config::default()
            };
            let placement = Placement {
                row_policy,
                ..Placement::default()
            };
            let name = format!("{objective_name} not finite {scope:?} {policy_name}");
            list.add_logits(name, description, config, placement)?;
        }
    }
    Ok(())
}

/// Normalizers, what may be absent, and what is inactive throughout.
pub(super) fn option_cases(list: &mut List) -> Result<()> {
    let scaled = Config {
        normalizer: Normalizer::Value(1234.5),
        loss_multiplier: 8.0,
        grad_scale: 0.5,
        entropy_coef: 0.1,
        ..Config::default()
    };
    let placement = Placement::default();
    let name = "normalizer and scales given".to_string();
    list.add_logits(name, LOGITS, scaled, placement)?;
    let mut without_old = LOGITS;
    without_old.tokens.has_old = false;
    let reinforce = Config {
        objective: Objective::Reinforce,
        ..Config::default()
    };
    let name = "reinforce without old log-probs".to_string();
    list.add_logits(name, without_old, reinforce, placement)?;
    for gradient in [Gradient::ZeroFill, Gradient::Untouched, Gradient::Compact] {
        let mut inactive = LOGITS;
        inactive.tokens.source = SourceKind::Zero;
        let config = Config {
            gradient,
            ..Config::default()
        };
        list.add_logits(
            format!("all inactive {gradient:?}"),
            inactive,
            config,
            placement,
        )?;
    }
    Ok(())
}

/// Batches and rows from nothing on.
pub(super) fn shape_cases(list: &mut List) -> Result<()> {
    for (num_rows, width, vocab_size) in [
        (0, 0, 9),
        (3, 0, 9),
        (1, 1, 3),
        (4, 3, 2),
        (700, 1, 5),
        (3, 300, 8),
    ] {
        for (layout_name, layout) in [LAYOUTS[1], LAYOUTS[4]] {
            for gradient in [Gradient::ZeroFill, Gradient::Compact] {
                let mut description = LOGITS;
                description.rows.vocab_size = vocab_size;
                description.tokens = Description {
                    num_rows,
                    width,
                    layout,
                    source: SourceKind::PerResponse,
                    ..description.tokens
                };
                let config = Config {
                    gradient,
                    ..Config::default()
                };
                let name =
                    format!("{num_rows} x {width} x {vocab_size} {layout_name} {gradient:?}");
                list.add_logits(name, description, config, Placement::default())?;
            }
        }
    }
    Ok(())
}
