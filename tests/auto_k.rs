//! Automatic K and the schedules: hand-computed sequences, bounds, resuming, refusals.

use qae::{AutoK, AutoKConfig, EntropyTarget, KBound, KSchedule};
use qae_test_support::Random;

fn controller(change: impl FnOnce(&mut AutoKConfig)) -> qae::Result<AutoK> {
    let mut config = AutoKConfig::default();
    change(&mut config);
    AutoK::new(config)
}

fn resumed(auto_k: &AutoK) -> AutoK {
    serde_json::from_str(&serde_json::to_string(auto_k).unwrap()).unwrap()
}

/// Entropies from far below to far above 1 nat.
fn entropies(seed: u64) -> impl Iterator<Item = f64> {
    let mut random = Random(seed);
    std::iter::repeat_with(move || (8.0 * random.unit() - 4.0).exp())
}

#[test]
fn steps_follow_the_formula() {
    let mut auto_k = controller(|_| {}).unwrap();
    assert_eq!((auto_k.k(), auto_k.target_entropy()), (0.4, None));
    // 0.1 · ln 0.8 = -0.022314355131420976; then ln 1, ln 2, ln 1/2 = ∓0.0693147180559945 / 0.1.
    for (entropy, expected) in [
        (0.5, 0.377_685_644_868_579),
        (0.4, 0.377_685_644_868_579),
        (0.2, 0.447_000_362_924_573_6),
        (0.8, 0.377_685_644_868_579),
    ] {
        let step = auto_k.step(entropy).unwrap();
        assert!((step.k - expected).abs() <= 1e-15, "{step}");
        assert!((step.target_entropy - 0.4).abs() <= 1e-16, "{step}");
        assert_eq!((step.k, step.held_at), (auto_k.k(), None));
    }
    assert_eq!(auto_k.steps(), 4);
}

#[test]
fn k_stays_within_its_bounds_and_says_so() {
    let mut auto_k = controller(|config| config.target = EntropyTarget::Nats(0.5)).unwrap();
    // e³ and e⁻³ too high and too low: K would move by 0.3 each time.
    let (high, low) = (0.5 * 3_f64.exp(), 0.5 * (-3_f64).exp());
    let mut held = |entropy| {
        let step = auto_k.step(entropy).unwrap();
        (step.k, step.held_at)
    };
    let (k, held_at) = held(high);
    assert!((k - 0.1).abs() <= 1e-15 && held_at != Some(KBound::Max));
    assert_eq!(held(high), (0.1, Some(KBound::Min)));
    assert_eq!(held(low).1, None);
    assert_eq!(held(low), (0.6, Some(KBound::Max)));
    // No wind-up: one step back moves by its own amount.
    let (k, held_at) = held(0.5 * 1_f64.exp());
    assert!((k - 0.5).abs() <= 1e-15 && held_at.is_none());
    // Without entropy the logarithm is infinite, whatever the sign of 0.
    assert_eq!(held(0.0), (0.6, Some(KBound::Max)));
    assert_eq!(held(-0.0), (0.6, Some(KBound::Max)));
    assert_eq!(held(f64::MAX), (0.1, Some(KBound::Min)));
}

#[test]
fn a_resumed_controller_continues_bit_for_bit() {
    for target in [EntropyTarget::InitialShare(0.8), EntropyTarget::Nats(0.37)] {
        for stop in 0..40 {
            let mut whole = controller(|config| config.target = target).unwrap();
            let mut parts = whole.clone();
            for (step, entropy) in entropies(stop).take(40).enumerate() {
                if step as u64 == stop {
                    parts = resumed(&parts);
                }
                let expected = whole.step(entropy).unwrap();
                let found = parts.step(entropy).unwrap();
                assert_eq!(found.k.to_bits(), expected.k.to_bits(), "step {step}");
                assert_eq!(found, expected);
            }
            assert_eq!(parts, whole);
        }
    }
}

#[test]
fn every_k_is_one_that_advantages_accept() {
    let mut auto_k = controller(|_| {}).unwrap();
    for entropy in entropies(7).take(1000) {
        let step = auto_k.step(entropy).unwrap();
        assert!((0.1..=0.6).contains(&step.k), "{step}");
        let wants_more = step.entropy < step.target_entropy;
        assert!(
            step.held_at.is_some() || (step.k > step.previous_k) == wants_more,
            "{step}"
        );
    }
}

#[test]
fn the_log_line_explains_the_step() {
    let mut auto_k = controller(|_| {}).unwrap();
    assert_eq!(
        auto_k.step(0.5).unwrap().to_string(),
        "auto K step 1: K 0.4000 -> 0.3777, entropy 0.5000 above target 0.4000 nats, \
         K + 0.1 * ln(0.4000 / 0.5000)"
    );
    let line = auto_k.step(0.001).unwrap().to_string();
    assert!(
        line.contains("K 0.3777 -> 0.6000, entropy 0.0010 below"),
        "{line}"
    );
    assert!(
        line.ends_with(", held at max_k") && !line.contains('\n'),
        "{line}"
    );
    assert!(
        auto_k
            .step(100.0)
            .unwrap()
            .to_string()
            .ends_with(", held at min_k")
    );
    let at_target = auto_k.target_entropy().unwrap();
    assert!(
        auto_k
            .step(at_target)
            .unwrap()
            .to_string()
            .contains(" at target ")
    );
}

#[test]
fn bad_entropies_are_refused_and_change_nothing() {
    let mut auto_k = controller(|_| {}).unwrap();
    for entropy in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1e-300] {
        let message = auto_k.step(entropy).unwrap_err().to_string();
        assert!(
            message.starts_with("entropy: expected a finite number of nats"),
            "{message}"
        );
    }
    // 0.8 of nothing is no target.
    let message = auto_k.step(0.0).unwrap_err().to_string();
    assert!(
        message.starts_with("initial_entropy: expected"),
        "{message}"
    );
    assert_eq!(auto_k, controller(|_| {}).unwrap());
    auto_k.step(0.5).unwrap();
    let before = auto_k.clone();
    assert!(auto_k.step(f64::NAN).is_err());
    assert_eq!(auto_k, before);
}

#[test]
fn bad_parameters_are_refused_by_name() {
    type Change = fn(&mut AutoKConfig);
    let cases: [(Change, &str); 11] = [
        (
            |c| c.min_k = 0.0,
            "min_k: expected a number in (0, 1), found 0",
        ),
        (|c| c.min_k = f64::NAN, "min_k"),
        (
            |c| c.max_k = 1.0,
            "max_k: expected a number in (0, 1), found 1",
        ),
        (
            |c| (c.min_k, c.max_k) = (0.6, 0.1),
            "min_k: expected at most max_k, 0.1, found 0.6",
        ),
        (
            |c| c.initial_k = 0.7,
            "initial_k: expected a number in [0.1, 0.6], found 0.7",
        ),
        (|c| c.initial_k = f64::NAN, "initial_k"),
        (|c| c.gain = 0.0, "gain"),
        (|c| c.gain = f64::INFINITY, "gain"),
        (
            |c| c.target = EntropyTarget::InitialShare(0.0),
            "target.initial_share",
        ),
        (|c| c.target = EntropyTarget::Nats(-0.3), "target.nats"),
        (|c| c.target = EntropyTarget::Nats(f64::NAN), "target.nats"),
    ];
    for (change, expected) in cases {
        let message = controller(change).unwrap_err().to_string();
        assert!(message.starts_with(expected), "{message}");
    }
}

#[test]
fn a_state_that_cannot_be_is_refused() {
    let mut auto_k = controller(|_| {}).unwrap();
    auto_k.step(0.5).unwrap();
    let good = serde_json::to_value(&auto_k).unwrap();
    for (field, value, expected) in [
        (
            "k",
            0.61.into(),
            "k: expected a number in [0.1, 0.6], found 0.61",
        ),
        ("steps", 0.into(), "initial_entropy: expected"),
        (
            "steps",
            u64::MAX.into(),
            "steps: expected at most 9007199254740992 rollouts, found 18446744073709551615",
        ),
        (
            "initial_entropy",
            serde_json::Value::Null,
            "initial_entropy: expected",
        ),
        (
            "initial_entropy",
            (-0.5).into(),
            "initial_entropy: expected",
        ),
        ("initial_entropy", 0.0.into(), "initial_entropy: expected"),
        (
            "config",
            serde_json::json!({"gain": -1.0}),
            "gain: expected",
        ),
        (
            "config",
            serde_json::json!({"gian": 0.1}),
            "unknown field `gian`",
        ),
        ("K", 0.4.into(), "unknown field `K`"),
    ] {
        let mut state = good.clone();
        state[field] = value;
        let message = serde_json::from_value::<AutoK>(state)
            .unwrap_err()
            .to_string();
        assert!(message.starts_with(expected), "{message}");
    }
    assert_eq!(serde_json::from_value::<AutoK>(good).unwrap(), auto_k);
    let mut unused = serde_json::to_value(controller(|_| {}).unwrap()).unwrap();
    unused["k"] = 0.5.into();
    let error = serde_json::from_value::<AutoK>(unused).unwrap_err();
    let expected = "k: expected initial_k, 0.4, with 0 steps, found 0.5";
    assert!(error.to_string().starts_with(expected), "{error}");
}

#[test]
fn the_stored_form_is_the_documented_one() {
    let mut auto_k = controller(|config| config.target = EntropyTarget::Nats(0.25)).unwrap();
    auto_k.step(0.25).unwrap();
    assert_eq!(
        serde_json::to_value(&auto_k).unwrap(),
        serde_json::json!({
            "config": {
                "initial_k": 0.4, "gain": 0.1, "min_k": 0.1, "max_k": 0.6,
                "target": {"nats": 0.25},
            },
            "k": 0.4,
            "initial_entropy": 0.25,
            "steps": 1,
        })
    );
}

#[test]
fn schedules_reach_their_ends_exactly() {
    for (from, to, steps) in [
        (0.6, 0.2, 7),
        (0.1, 0.7, 1),
        (0.3, 0.3, 5),
        (0.9, 0.1, 1000),
    ] {
        let schedule = KSchedule::Linear { from, to, steps };
        schedule.check().unwrap();
        assert_eq!(
            (schedule.k(0), schedule.k(steps), schedule.k(u64::MAX)),
            (from, to, to)
        );
        for step in 0..steps {
            let (here, next) = (schedule.k(step), schedule.k(step + 1));
            let exact = from + (to - from) * step as f64 / steps as f64;
            assert!((here - exact).abs() <= 1e-15);
            assert!(if from <= to {
                here <= next
            } else {
                here >= next
            });
        }
    }
    let two_phase = KSchedule::TwoPhase {
        first: 0.4,
        second: 0.6,
        switch_at: 3,
    };
    two_phase.check().unwrap();
    assert_eq!(
        [0, 2, 3, 4].map(|step| two_phase.k(step)),
        [0.4, 0.4, 0.6, 0.6]
    );
    assert_eq!(KSchedule::Constant { k: 0.2 }.k(12), 0.2);
}

#[test]
fn bad_schedules_are_refused_by_name() {
    for (json, expected) in [
        (
            r#"{"kind": "constant", "k": 1.0}"#,
            "k: expected a number in (0, 1)",
        ),
        (
            r#"{"kind": "linear", "from": 0.0, "to": 0.5, "steps": 3}"#,
            "from",
        ),
        (
            r#"{"kind": "linear", "from": 0.5, "to": 1.5, "steps": 3}"#,
            "to",
        ),
        (
            r#"{"kind": "linear", "from": 0.5, "to": 0.2, "steps": 0}"#,
            "steps",
        ),
        (
            r#"{"kind": "two_phase", "first": -0.1, "second": 0.2, "switch_at": 1}"#,
            "first",
        ),
        (
            r#"{"kind": "two_phase", "first": 0.1, "second": 1.0, "switch_at": 1}"#,
            "second",
        ),
        (
            r#"{"kind": "two_phase", "first": 0.1, "second": 0.2, "switch_at": 0}"#,
            "switch_at",
        ),
    ] {
        let schedule: KSchedule = serde_json::from_str(json).unwrap();
        let message = schedule.check().unwrap_err().to_string();
        assert!(message.starts_with(expected), "{message}");
        // Unchecked, it gives some number and no panic.
        schedule.k(2);
    }
    assert!(serde_json::from_str::<KSchedule>(r#"{"kind": "linear", "from": 0.5}"#).is_err());
    let unchecked = KSchedule::Linear {
        from: f64::NAN,
        to: f64::NAN,
        steps: 2,
    };
    assert!(unchecked.check().is_err() && unchecked.k(1).is_nan());
}

#[test]
fn the_page_shows_what_is_printed_and_stored() {
    let page = include_str!("../docs/auto-k.md");
    let mut auto_k = controller(|_| {}).unwrap();
    let line = auto_k.step(0.45).unwrap().to_string();
    assert!(page.lines().any(|shown| shown == line), "{line}");
    let stored = page.lines().find(|line| line.starts_with(r#"{"config""#));
    let shown: AutoK = serde_json::from_str(stored.unwrap()).unwrap();
    // Logarithms differ in the last place between platforms.
    assert!((shown.k() - auto_k.k()).abs() <= 1e-15);
    assert_eq!(
        (shown.config(), shown.steps(), shown.target_entropy()),
        (auto_k.config(), 1, auto_k.target_entropy())
    );
}
