use super::ConfigFile;
use crate::config::{
    Aggregation, Baseline, Config, Gradient, Interpolation, Kl, KlEstimator, MetricsScope,
    Normalizer, Objective, Scale, Singleton,
};
use crate::error::Error;

fn parse(json: &str) -> ConfigFile {
    ConfigFile::from_json(json).unwrap()
}

fn resolve(json: &str) -> Config {
    parse(json).resolve(Some(24)).unwrap()
}

fn refusal(json: &str) -> String {
    ConfigFile::from_json(json)
        .and_then(|file| file.resolve(Some(24)))
        .unwrap_err()
        .to_string()
}

#[test]
fn an_empty_object_is_the_default() {
    assert_eq!(resolve("{}"), Config::default());
}

#[test]
fn null_turns_a_bound_off_and_absence_keeps_it() {
    let clip = |json| resolve(json).objective;
    let expected = |low, dual_clip| Objective::Clip {
        low,
        high: Some(0.28),
        dual_clip,
        ratio_cap: None,
    };
    assert_eq!(clip(r#"{"clip_low": null}"#), expected(None, Some(3.0)));
    assert_eq!(clip(r#"{"dual_clip": null}"#), expected(Some(0.2), None));
}

#[test]
fn k_is_the_decimal_that_was_written() {
    for text in ["0.1", "0.28", "0.30000000000000004", "0.7999999999999999"] {
        let config = resolve(&format!(r#"{{"baseline": {{"k": {text}}}}}"#));
        assert_eq!(config.advantage.k(), Some(text.parse().unwrap()));
    }
}

#[test]
fn the_normalizer_is_the_one_of_the_aggregation() {
    let normalizer =
        r#""normalizer": {"dp_size": 4, "batch_num_tokens": 3001, "global_batch_size": 96}"#;
    let of = |aggregation: &str| {
        resolve(&format!(
            r#"{{"aggregation": "{aggregation}", {normalizer}}}"#
        ))
    };
    assert_eq!(of("token-mean").normalizer, Normalizer::Value(3001.0));
    assert_eq!(of("token-mean").loss_multiplier, 4.0);
    let norm = of("seq-mean-token-sum-norm");
    assert_eq!(norm.normalizer, Normalizer::Value(96.0));
    let scale = 24.0; // the padded width
    assert_eq!(norm.aggregation, Aggregation::SeqMeanTokenSumNorm { scale });
    let packed = parse(r#"{"aggregation": "seq-mean-token-sum-norm"}"#).resolve(None);
    assert!(matches!(packed, Err(Error::Missing { .. })), "{packed:?}");
}

#[test]
fn later_layers_win_and_drop_what_belonged_to_another_loss_or_baseline() {
    let metadata = parse(
        r#"{"baseline": {"kind": "mean"}, "epsilon": 1e-4, "loss": "gspo", "ratio": "sequence",
            "clip_low": 0.003, "loss_params": {"seq_log_ratio_max": null}}"#,
    );
    let flags = parse(r#"{"baseline": {"kind": "quantile", "k": 0.6}, "loss": "ppo_clip"}"#);
    let config = metadata.overridden_by(&flags).resolve(None).unwrap();
    assert_eq!(config.objective, Config::default().objective);
    assert_eq!(config.advantage.k(), Some(0.6));
    let std = Scale::Std {
        unbiased: true,
        epsilon: 1e-4,
    };
    assert_eq!(config.advantage.scale, std);

    let same_kind = parse(r#"{"baseline": {"k": 0.6}, "dual_clip": null}"#).overridden_by(&parse(
        r#"{"baseline": {"kind": "quantile", "interpolation": "linear"}, "loss": "ppo_clip"}"#,
    ));
    let config = same_kind.resolve(None).unwrap();
    let linear = Baseline::Quantile {
        k: 0.6,
        interpolation: Interpolation::Linear,
    };
    assert_eq!(config.advantage.baseline, linear);
    assert!(matches!(
        config.objective,
        Objective::Clip {
            dual_clip: None,
            ..
        }
    ));
}

#[test]
fn the_entropy_term_has_two_spellings() {
    for name in ["entropy_coef", "entropy_coeff"] {
        let config = resolve(&format!(r#"{{"{name}": 0.001, "temperature": 0.7}}"#));
        assert_eq!((config.entropy_coef, config.temperature), (0.001, 0.7));
    }
    let below = parse(r#"{"entropy_coef": 0.5, "temperature": 2}"#);
    let config = below.overridden_by(&parse(r#"{"entropy_coeff": 0}"#));
    let config = config.resolve(None).unwrap();
    assert_eq!((config.entropy_coef, config.temperature), (0.0, 2.0));
}

/// Each objective with values that are not its defaults.
const OBJECTIVES: [Objective; 5] = [
    Objective::Clip {
        low: None,
        high: None,
        dual_clip: None,
        ratio_cap: Some(4.0),
    },
    Objective::Gspo {
        low: Some(0.1),
        high: None,
        log_ratio_max: None,
    },
    Objective::Cispo {
        low: None,
        high: Some(5.0),
    },
    Objective::Sapo {
        tau_positive: 1.5,
        tau_negative: 2.0,
    },
    Objective::Reinforce,
];

#[test]
fn every_config_survives_the_round_trip() {
    let mut configs = vec![Config::default()];
    configs.extend(OBJECTIVES.map(|objective| Config {
        objective,
        ..Config::default()
    }));
    let mut config = Config {
        log_ratio_clamp: None,
        kl: Some(Kl {
            estimator: KlEstimator::K3,
            coef: 0.25,
            clamp: false,
        }),
        aggregation: Aggregation::SeqMeanTokenSumNorm { scale: 512.0 },
        normalizer: Normalizer::Value(7.0),
        temperature: 0.7,
        entropy_coef: -0.25,
        loss_multiplier: 4.0,
        grad_scale: 0.5,
        metrics_scope: MetricsScope::Active,
        gradient: Gradient::Untouched,
        ..Config::default()
    };
    config.advantage.baseline = Baseline::LeaveOneOut;
    config.advantage.scale = Scale::None;
    config.advantage.singleton = Singleton::Zero;
    configs.push(config);
    configs.push(Config {
        gradient: Gradient::Compact,
        ..Config::default()
    });
    for config in configs {
        let json = serde_json::to_string(&ConfigFile::from(&config)).unwrap();
        assert_eq!(parse(&json).resolve(None).unwrap(), config, "{json}");
    }
}

/// Configurations and how their error starts.
const REFUSALS: &[(&str, &str)] = &[
    (r#"{"clip": 1}"#, "clip: expected one of `baseline`"),
    (
        r#"{"baseline": {"q": 1}}"#,
        "baseline.q: expected one of `kind`",
    ),
    (
        r#"{"baseline": {"k": "x"}}"#,
        "baseline.k: expected a number, found string \"x\"",
    ),
    (
        r#"{"baseline": {"k": 1.5}}"#,
        "baseline.k: expected a number in (0, 1), found 1.5",
    ),
    (
        r#"{"baseline": {"kind": "mean", "k": 0.5}}"#,
        "baseline.k: expected nothing",
    ),
    (
        r#"{"baseline": {"kind": "leave_one_out", "interpolation": "linear"}}"#,
        "baseline.interpolation: expected nothing",
    ),
    (
        r#"{"baseline": {"kind": "median"}}"#,
        "baseline.kind: expected one of mean, leave_one_out",
    ),
    (
        r#"{"loss": "geo_mean"}"#,
        "loss: geo_mean is not supported (supported: ppo_clip,",
    ),
    (
        r#"{"aggregation": "row-mean"}"#,
        "aggregation: row-mean is not supported",
    ),
    (r#"{"loss": "ppo"}"#, "loss: expected one of ppo_clip, gspo"),
    (
        r#"{"ratio": "sequence"}"#,
        "ratio: expected token with loss ppo_clip, found sequence",
    ),
    (
        r#"{"loss": "gspo", "dual_clip": 3}"#,
        "dual_clip: expected none with loss gspo, found 3",
    ),
    (
        r#"{"loss_params": {"tau": 1}}"#,
        "loss_params.tau: expected one of tau_pos",
    ),
    (r#"{"kl": {"coef": 0.1}}"#, "kl.kind: expected k1, k2 or k3"),
    (
        r#"{"normalizer": {"batch_num_tokens": 0}}"#,
        "normalizer.batch_num_tokens: expected",
    ),
    (
        r#"{"normalizer": {"dp_size": -1}}"#,
        "normalizer.dp_size: expected",
    ),
    (
        r#"{"temperature": 0}"#,
        "temperature: expected a finite number above 0, found 0",
    ),
    (
        r#"{"entropy_coef": "0.1"}"#,
        "entropy_coef: expected a number, found string \"0.1\"",
    ),
    (
        r#"{"inactive_gradient": "dense"}"#,
        "inactive_gradient: expected one of zero_fill, untouched, compact",
    ),
    (
        r#"{"gate": "two_regime", "baseline": {"kind": "mean"}}"#,
        "gate: expected none",
    ),
    (r#"{"loss": "#, "config: expected a JSON object, found EOF"),
    ("7", "config: expected an object, found integer `7`"),
];

#[test]
fn refusals_name_the_field_what_was_expected_and_what_was_found() {
    for (json, expected) in REFUSALS {
        let message = refusal(json);
        assert!(message.starts_with(expected), "{json}: {message}");
        assert!(!message.contains('\n'), "{message}");
    }
}
