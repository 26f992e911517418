//! The list of cases: every kernel variant, layout, dtype and option at least once.

mod advantages;
mod log_probs;
mod logits;
mod scale;
mod tokens;

use super::batch::{Description, GroupKind, LayoutKind, OwnedBatch, SourceKind, WeightKind};
use super::{Call, Case};
use crate::batch::DType;
use crate::config::{Aggregation, Config, Kl, KlEstimator, Objective};
use crate::error::Result;

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
        advantages::advantage_cases,
        tokens::variant_cases,
        tokens::objective_cases,
        tokens::tensor_cases,
        tokens::source_cases,
        tokens::group_cases,
        tokens::shape_cases,
        tokens::option_cases,
        log_probs::row_cases,
        log_probs::shard_cases,
        logits::instance_cases,
        logits::long_row_cases,
        logits::objective_cases,
        logits::gradient_cases,
        logits::source_cases,
        logits::value_cases,
        logits::option_cases,
        logits::shape_cases,
        scale::cases,
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
        self.push(
            name,
            Call::Loss {
                batch,
                config,
                narrow_gradient,
            },
        );
        Ok(())
    }

    fn push(&mut self, name: String, call: Call) {
        self.cases.push(Case { name, call });
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
