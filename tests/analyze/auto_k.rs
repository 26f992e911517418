//! Automatic K replayed over a dump: which K, and what they do.

use crate::{Files, kinds, lines, report_of, report_of_lines_with, row, sample};
use qae::analyze::{AutoKReplay, Options, Regimes, Report, StepByK, Warning};
use qae::{AutoK, AutoKConfig, EntropyTarget, Interpolation, KBound};
use serde_json::{Value, json};
use std::fs;

const CONFIG: AutoKConfig = AutoKConfig {
    initial_k: 0.4,
    gain: 0.1,
    min_k: 0.1,
    max_k: 0.6,
    target: EntropyTarget::Nats(0.5),
};

fn with(config: AutoKConfig) -> Options {
    Options {
        auto_k: Some(config),
        ..Options::default()
    }
}

fn replay(report: &Report) -> &AutoKReplay {
    report.auto_k.as_ref().unwrap()
}

/// A group of eight with so many failures; without an entropy the rows have no such column.
fn group(step: i64, failures: usize, entropy: Option<f64>) -> Vec<Value> {
    let response = |i: usize| {
        let score = f64::from(u8::from(i >= failures));
        let prompt = format!("p{failures}");
        let mut row = row(step, &prompt, &format!("{step} {i}"), json!(score));
        row["entropy"] = json!(entropy);
        row
    };
    (0..8).map(response).collect()
}

/// Groups with 2, 3, 4 and 5 failures of eight at each step.
fn steps(steps: &[(i64, Option<f64>)]) -> Vec<Value> {
    let groups = |&(step, entropy): &(i64, Option<f64>)| {
        (2..=5).flat_map(move |failures| group(step, failures, entropy))
    };
    steps.iter().flat_map(groups).collect()
}

/// An entropy that moves K by so much, without bounds.
fn moving(by: f64) -> Option<f64> {
    Some(0.5 * (-by / CONFIG.gain).exp())
}

/// Hard and easy groups; positive, zero and negative advantages.
fn counts(regimes: &Regimes) -> [u64; 5] {
    let signs = &regimes.signs;
    [
        regimes.hard_groups,
        regimes.easy_groups,
        signs.positive,
        signs.zero,
        signs.negative,
    ]
}

/// A group is hard from ⌈8·K⌉ failures on; then its successes act, else its failures.
#[test]
fn the_course_and_its_figures_are_those_by_hand() {
    let entropies = [
        (3, moving(-0.1)),
        (4, moving(0.25)),
        (5, moving(0.1)),
        (7, Some(0.0)),
        (9, Some(1e6)),
    ];
    let report = report_of_lines_with(lines(&steps(&entropies)), &with(CONFIG)).unwrap();
    let replay = replay(&report);
    let at_rank_3 = [3, 1, 5 + 4 + 3, 18, 2];
    let at_rank_5 = [1, 3, 3, 20, 2 + 3 + 4];
    let at_rank_1 = [4, 0, 6 + 5 + 4 + 3, 14, 0];
    let at_rank_4 = [2, 2, 4 + 3, 20, 2 + 3];
    let expected = [
        (0.3, None, true, at_rank_3, 1),
        (0.55, None, true, at_rank_5, 1),
        (0.6, Some(KBound::Max), false, at_rank_5, 1),
        (0.6, Some(KBound::Max), false, at_rank_5, 1),
        (0.1, Some(KBound::Min), true, at_rank_1, 2),
    ];
    let mut auto_k = AutoK::new(CONFIG).unwrap();
    assert_eq!(replay.by_step.len(), expected.len());
    for ((found, (number, entropy)), (k, held_at, changed, automatic, flips)) in
        replay.by_step.iter().zip(entropies).zip(expected)
    {
        let measured = found.controller.unwrap().entropy;
        // A mean of equal numbers is rounded.
        assert!((measured - entropy.unwrap()).abs() <= 1e-12 * measured);
        let step = auto_k.step(measured).unwrap();
        assert_eq!((found.step, found.controller), (number, Some(step)));
        assert_eq!((found.responses, found.groups), (32, 4));
        assert_eq!(found.k, step.k);
        assert!((found.k - k).abs() < 1e-12, "{found:?}");
        assert_eq!(step.held_at, held_at);
        assert_eq!(found.method_changed, changed, "{found:?}");
        assert_eq!(counts(&found.automatic), automatic, "{found:?}");
        assert_eq!(counts(&found.fixed), at_rank_4, "{found:?}");
        assert_eq!(found.flips_from_fixed, flips, "{found:?}");
    }
    assert_eq!((replay.held_at_min, replay.held_at_max), (1, 2));
    assert_eq!(
        (replay.method_changes, replay.steps_without_entropy),
        (3, 0)
    );
    assert_eq!((replay.smallest_k, replay.largest_k), (0.1, 0.6));
    assert_eq!(replay.last_k, 0.1);
    assert_eq!(counts(&replay.automatic), [10, 10, 39, 92, 29]);
    assert_eq!(counts(&replay.fixed), at_rank_4.map(|count| 5 * count));
    assert_eq!(replay.flips_from_fixed, 6);
    assert_eq!(replay.config, CONFIG);
}

/// Steps count by their numbers, not as the files have them.
#[test]
fn neither_the_order_of_lines_nor_files_changes_the_course() {
    let entropies = [(1, moving(0.1)), (2, moving(0.15)), (10, moving(-0.2))];
    let in_order = report_of_lines_with(lines(&steps(&entropies)), &with(CONFIG)).unwrap();
    let mut reversed = steps(&entropies);
    reversed.reverse();
    let reversed = report_of_lines_with(lines(&reversed), &with(CONFIG)).unwrap();
    let file = |range: std::ops::Range<usize>| lines(&steps(&entropies[range]));
    let [first, second] = [file(2..3), file(0..2)];
    let files = Files::new(&[
        ("a.jsonl", first.as_bytes()),
        ("b.jsonl", second.as_bytes()),
    ]);
    let files = files.report(&with(CONFIG)).unwrap();
    let course = |report: &Report| -> Vec<(i64, f64, [u64; 5], [u64; 5])> {
        let steps = replay(report).by_step.iter();
        let step = steps.map(|step| {
            let (automatic, fixed) = (counts(&step.automatic), counts(&step.fixed));
            (step.step, step.k, automatic, fixed)
        });
        step.collect()
    };
    assert_eq!(course(&in_order).len(), 3);
    assert_eq!(course(&in_order), course(&reversed));
    assert_eq!(course(&in_order), course(&files));
}

#[test]
fn k_stays_where_a_step_has_no_entropy() {
    let entropies = [
        (1, None),
        (2, moving(-0.1)),
        (3, None),
        (4, Some(f64::NAN)),
        (5, moving(0.1)),
    ];
    let report = report_of_lines_with(lines(&steps(&entropies)), &with(CONFIG)).unwrap();
    let replay = replay(&report);
    let k: Vec<_> = replay.by_step.iter().map(|step| step.k).collect();
    let has: Vec<_> = (replay.by_step.iter())
        .map(|step| step.controller.map(|controller| controller.step))
        .collect();
    assert_eq!(has, [None, Some(1), None, None, Some(2)]);
    assert_eq!((k[0], k[2], k[3]), (0.4, k[1], k[1]));
    assert!((k[1] - 0.3).abs() < 1e-12 && (k[4] - 0.4).abs() < 1e-12);
    // Their figures are those at the K that stays.
    let [first, third] = [0, 2].map(|i| counts(&replay.by_step[i].automatic));
    assert_eq!(first, [2, 2, 7, 20, 5]);
    assert_eq!(third, [3, 1, 12, 18, 2]);
    assert!(!replay.by_step[2].method_changed);
    assert_eq!(replay.steps_without_entropy, 3);
    let message = message(&report, "steps_without_entropy");
    assert!(
        message.starts_with("3 steps without an entropy") && message.ends_with(": 1, 3, 4"),
        "{message}"
    );
}

fn message<'a>(report: &'a Report, kind: &str) -> &'a str {
    let found = |warning: &&Warning| warning.kind == kind;
    let warning = report.warnings.iter().find(found);
    &warning.unwrap_or_else(|| panic!("no {kind}")).message
}

#[test]
fn responses_that_have_no_part_in_the_entropy_are_counted() {
    let mut rows = steps(&[(1, Some(0.5)), (2, None)]);
    rows[3]["entropy"] = Value::Null;
    rows[5]["entropy"] = json!(-0.25);
    let report = report_of_lines_with(lines(&rows), &with(CONFIG)).unwrap();
    assert!(message(&report, "missing_entropies").starts_with("1 response without"));
    assert!(message(&report, "negative_entropies").starts_with("1 response with"));
    assert!(message(&report, "one_step_with_entropy").starts_with("one step"));
    let whole = report_of_lines_with(
        lines(&steps(&[(1, Some(0.5)), (2, Some(0.5))])),
        &with(CONFIG),
    );
    let whole = whole.unwrap();
    for kind in [
        "missing_entropies",
        "negative_entropies",
        "one_step_with_entropy",
    ] {
        assert!(!kinds(&whole).contains(&kind), "{kind}");
    }
}

/// The generations of a real run, with made-up entropies.
fn trl_addition() -> String {
    let text = fs::read_to_string(sample("trl-addition.jsonl")).unwrap();
    let row = |line: &str| {
        let mut row: Value = serde_json::from_str(line).unwrap();
        let step = row["step"].as_i64().unwrap();
        row["entropy"] = json!(0.5 + 0.4 * (step as f64).sin());
        format!("{row}\n")
    };
    text.lines().map(row).collect()
}

fn regimes(by_k: &StepByK) -> Regimes {
    Regimes {
        hard_groups: by_k.hard_groups,
        easy_groups: by_k.easy_groups,
        signs: by_k.signs,
    }
}

#[test]
fn every_step_has_the_figures_of_its_k() {
    let text = trl_addition();
    for interpolation in [Interpolation::InvertedCdf, Interpolation::Linear] {
        let options = |k: Vec<f64>, auto_k| Options {
            k,
            interpolation,
            auto_k,
            ..Options::default()
        };
        let config = AutoKConfig {
            gain: 0.3,
            ..AutoKConfig::default()
        };
        let report = report_of_lines_with(&text, &options(vec![0.4], Some(config))).unwrap();
        let replay = replay(&report);
        let mut k: Vec<_> = replay.by_step.iter().map(|step| step.k).collect();
        k.sort_by(f64::total_cmp);
        k.dedup();
        assert!(k.len() > 4, "{k:?}");
        let at_all = report_of_lines_with(&text, &options(k, None)).unwrap();
        assert_eq!(replay.by_step.len(), at_all.by_step.len());
        for (found, expected) in replay.by_step.iter().zip(&at_all.by_step) {
            let at_k = expected.by_k.iter().find(|by_k| by_k.k == found.k).unwrap();
            assert_eq!(found.automatic, regimes(at_k));
        }
        for (found, expected) in replay.by_step.iter().zip(&report.by_step) {
            assert_eq!(found.fixed, regimes(&expected.by_k[0]));
            let entropy = found.controller.map(|controller| controller.entropy);
            assert_eq!(entropy, expected.entropy);
        }
        assert_eq!(replay.fixed.signs, report.by_k[0].signs);
        let changes = replay
            .by_step
            .windows(2)
            .filter(|pair| pair[0].k != pair[1].k);
        let num_changes = changes.count() as u64 + u64::from(replay.by_step[0].k != 0.4);
        match interpolation {
            Interpolation::Linear => assert_eq!(replay.method_changes, num_changes),
            Interpolation::InvertedCdf => assert!(replay.method_changes <= num_changes),
        }
    }
}

#[test]
fn a_k_that_cannot_move_is_the_fixed_one() {
    let text = trl_addition();
    let bounds = AutoKConfig {
        min_k: 0.4,
        max_k: 0.4,
        ..AutoKConfig::default()
    };
    let tiny = AutoKConfig {
        gain: 1e-300,
        ..AutoKConfig::default()
    };
    for config in [bounds, tiny] {
        let report = report_of_lines_with(&text, &with(config)).unwrap();
        let replay = replay(&report);
        let by_k = &report.by_k[3];
        assert_eq!((by_k.k, replay.last_k), (0.4, 0.4));
        assert_eq!(replay.automatic, replay.fixed);
        assert_eq!(replay.automatic.signs, by_k.signs);
        assert_eq!(replay.automatic.hard_groups, by_k.hard_groups);
        assert_eq!((replay.method_changes, replay.flips_from_fixed), (0, 0));
        for (step, expected) in replay.by_step.iter().zip(&report.by_step) {
            assert_eq!(step.automatic, regimes(&expected.by_k[3]));
        }
    }
}

#[test]
fn the_number_of_threads_does_not_show() {
    let rows: Vec<_> = (0..6000)
        .flat_map(|i: i64| {
            [0.3, 0.1, 0.7].map(|reward| {
                let reward = reward + (i % 100) as f64 / 300.0;
                let mut row = row(i % 7, &format!("{i}"), &format!("{reward}"), json!(reward));
                row["entropy"] = json!(1.0 / (1 + i % 7) as f64);
                row
            })
        })
        .collect();
    let text = lines(&rows);
    let run = |num_threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads);
        let pool = pool.build().unwrap();
        let report = pool.install(|| report_of_lines_with(&text, &with(AutoKConfig::default())));
        serde_json::to_string(replay(&report.unwrap())).unwrap()
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(5));
}

/// A group belongs to the step of its first response; the entropy of a later one still counts.
#[test]
fn a_step_without_groups_of_its_own_moves_k() {
    let row = |step: i64, score: f64| {
        let mut row = row(step, "a", &format!("{step} {score}"), json!(score));
        row["uid"] = json!("u");
        row["entropy"] = json!(0.5 / std::f64::consts::E);
        row
    };
    let rows = [row(1, 1.0), row(1, 0.0), row(2, 0.0), row(2, 1.0)];
    let report = report_of_lines_with(lines(&rows), &with(CONFIG)).unwrap();
    assert_eq!(report.by_step.len(), 1);
    let replay = replay(&report);
    let found: Vec<_> = (replay.by_step.iter())
        .map(|step| (step.step, step.responses, step.groups))
        .collect();
    assert_eq!(found, [(1, 4, 1), (2, 0, 0)]);
    assert!((replay.last_k - 0.6).abs() < 1e-12, "{}", replay.last_k);
}

#[test]
fn totals_are_over_all_steps_where_there_are_too_many_to_list() {
    let rows = (0..50_001).map(|step| {
        format!(
            "{{\"input\":\"a\",\"output\":\"{step}\",\"score\":1,\"step\":{step},\"entropy\":0.5}}\n"
        )
    });
    let report = report_of_lines_with(rows.collect::<String>(), &with(CONFIG)).unwrap();
    let replay = replay(&report);
    assert_eq!((report.steps_left_out, replay.by_step.len()), (50_001, 0));
    assert_eq!(
        replay.automatic.hard_groups + replay.automatic.easy_groups,
        50_001
    );
    assert_eq!((replay.steps_without_entropy, replay.last_k), (0, 0.4));
    // The recommendation knows the entropies as well.
    let rests_on = &report.recommendation.rests_on;
    assert!(
        rests_on.contains("0.500 to 0.500 nats over 50001 steps"),
        "{rests_on}"
    );
}

#[test]
fn without_steps_or_entropies_there_is_nothing_to_replay() {
    let without_steps = |name: &str| {
        let mut rows = steps(&[(1, Some(0.5))]);
        rows.iter_mut().for_each(|row| {
            row.as_object_mut().unwrap().remove("step");
        });
        let text = lines(&rows);
        let names = ["rollouts.jsonl", name];
        let files = Files::new(&names.map(|name| (name, text.as_bytes())));
        report_of(&names.map(|name| files.0.path().join(name)), &with(CONFIG)).unwrap_err()
    };
    assert_eq!(
        without_steps("more.jsonl"),
        "auto_k: expected the training step of each response, found none in the files (--step \
         COLUMN names the column)"
    );
    let error = without_steps("7.jsonl");
    assert!(
        error.contains("found some without one (--step COLUMN"),
        "{error}"
    );

    let error_of = |entropies: &[(i64, Option<f64>)], config| {
        report_of_lines_with(lines(&steps(entropies)), &with(config)).unwrap_err()
    };
    let none = error_of(&[(1, None), (2, Some(f64::NAN))], CONFIG);
    assert_eq!(
        none,
        "auto_k: expected an entropy at each step, found no finite one in entropy"
    );
    let error = report_of(&[sample("trl-addition.jsonl")], &with(CONFIG)).unwrap_err();
    assert_eq!(
        error,
        "auto_k: expected an entropy at each step, found none in the files (--entropy COLUMN names \
         the column)"
    );
    let error = report_of(&[sample("verifiers")], &with(CONFIG)).unwrap_err();
    assert!(error.ends_with("found none in the files, nor log-probs to estimate it from"));
}

#[test]
fn an_entropy_that_no_policy_has_is_refused_with_its_step() {
    let error_of = |entropies: &[(i64, Option<f64>)], config| {
        report_of_lines_with(lines(&steps(entropies)), &with(config)).unwrap_err()
    };
    assert_eq!(
        error_of(&[(4, None), (8, Some(0.0))], AutoKConfig::default()),
        "entropy of step 8: expected a number of nats above 0, of which 0.8 is the target, found 0"
    );
    assert_eq!(
        error_of(&[(4, Some(0.5)), (8, Some(-0.25))], CONFIG),
        "entropy of step 8: expected a finite number of nats, at least 0, found -0.25"
    );
    let error = error_of(&[(1, Some(1e308)), (2, Some(0.5))], CONFIG);
    assert!(
        error.starts_with("entropy of step 1: expected a finite"),
        "{error}"
    );
    let error = error_of(
        &[(1, Some(0.5))],
        AutoKConfig {
            gain: 0.0,
            ..CONFIG
        },
    );
    assert!(error.starts_with("auto_k.gain: expected"), "{error}");
}

#[test]
fn it_is_said_where_entropies_come_from() {
    let name = |sample: &str| crate::report(sample).columns.entropy;
    assert_eq!(
        name("nemo_rl").as_deref(),
        Some("mean -log p of generation_logprobs (an estimate)")
    );
    for folder in ["prime_rl/rollouts", "prime_rl-traces"] {
        assert_eq!(
            name(folder).as_deref(),
            Some("mean -log p of nodes.logprobs (an estimate)")
        );
    }
    for folder in ["verifiers", "verl", "trl", "trl-addition.jsonl"] {
        assert_eq!(name(folder), None, "{folder}");
    }
    // A column may be added in the middle of a run.
    let mut before = steps(&[(1, None)]);
    before.iter_mut().for_each(|row| {
        row.as_object_mut().unwrap().remove("entropy");
    });
    let (before, after) = (lines(&before), lines(&steps(&[(2, Some(0.5))])));
    let files = Files::new(&[
        ("1.jsonl", before.as_bytes()),
        ("2.jsonl", after.as_bytes()),
    ]);
    let report = files.report(&with(CONFIG)).unwrap();
    assert_eq!(report.columns.entropy.as_deref(), Some("entropy"));
    assert_eq!(replay(&report).steps_without_entropy, 1);
}

#[test]
fn estimates_are_replayed_as_measurements_are() {
    for folder in ["nemo_rl", "prime_rl/rollouts"] {
        let report = report_of(&[sample(folder)], &with(AutoKConfig::default())).unwrap();
        let replay = replay(&report);
        let mut auto_k = AutoK::new(AutoKConfig::default()).unwrap();
        for (step, expected) in replay.by_step.iter().zip(&report.by_step) {
            let expected = auto_k.step(expected.entropy.unwrap()).unwrap();
            assert_eq!(step.controller, Some(expected));
        }
        assert_eq!(replay.by_step.len(), 2);
    }
}

/// Log-probs that are absent are no policy that is sure of each token.
#[test]
fn log_probs_that_are_absent_are_no_entropy_of_zero() {
    let path = "prime_rl-traces/rollouts/step_4/train/all/traces.jsonl";
    let traces = fs::read_to_string(sample(path)).unwrap();
    let without = |line: &str| {
        let mut trace: Value = serde_json::from_str(line).unwrap();
        for node in trace["nodes"].as_array_mut().unwrap() {
            node["logprobs"] = json!([]);
        }
        format!("{trace}\n")
    };
    let traces: String = traces.lines().map(without).collect();
    let report = crate::report_of_lines(traces).unwrap();
    assert_eq!(report.by_step[0].entropy, None);

    let nemo_rl = fs::read_to_string(sample("nemo_rl/train_data_step1.jsonl")).unwrap();
    let changed = |change: fn(&mut serde_json::Map<String, Value>)| {
        let row = |line: &str| {
            let mut row: Value = serde_json::from_str(line).unwrap();
            change(row.as_object_mut().unwrap());
            format!("{row}\n")
        };
        let text: String = nemo_rl.lines().map(row).collect();
        crate::report_of_lines(text).unwrap()
    };
    let report = changed(|row| row["generation_logprobs"] = json!([[]]));
    assert_eq!(report.by_step[0].entropy, None);
    // Bytes of the messages are no number of tokens to divide by.
    let report = changed(|row| {
        row.remove("token_loss_mask");
    });
    assert_eq!(report.by_step[0].entropy, None);
    assert_eq!(report.columns.entropy, None);
    assert!(changed(|_| ()).by_step[0].entropy.is_some());
}
