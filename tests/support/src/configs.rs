use qae::{Aggregation, Kl, KlEstimator, Objective};

/// Every objective, with and without each of its options.
pub fn objectives() -> Vec<Objective> {
    let clip = |low, high, dual_clip, ratio_cap| Objective::Clip {
        low,
        high,
        dual_clip,
        ratio_cap,
    };
    let (low, high) = (Some(0.2), Some(0.28));
    let gspo = |log_ratio_max| Objective::Gspo {
        low,
        high,
        log_ratio_max,
    };
    vec![
        clip(low, high, None, None),
        clip(low, high, Some(3.0), None),
        clip(low, high, None, Some(2.0)),
        clip(None, None, None, None),
        gspo(None),
        gspo(Some(0.25)),
        Objective::Cispo { low, high },
        Objective::Cispo { low: None, high },
        Objective::Sapo {
            tau_positive: 1.0,
            tau_negative: 1.05,
        },
        Objective::Reinforce,
    ]
}

/// Every KL term, and none.
pub fn kls() -> Vec<Option<Kl>> {
    let kl = |estimator, clamp| {
        Some(Kl {
            estimator,
            coef: 0.375,
            clamp,
        })
    };
    vec![
        None,
        kl(KlEstimator::K1, false),
        kl(KlEstimator::K2, false),
        kl(KlEstimator::K3, false),
        kl(KlEstimator::K3, true),
    ]
}

/// Every aggregation.
pub fn aggregations() -> [Aggregation; 4] {
    [
        Aggregation::TokenMean,
        Aggregation::SeqMeanTokenMean,
        Aggregation::SeqMeanTokenSum,
        Aggregation::SeqMeanTokenSumNorm { scale: 7.0 },
    ]
}
