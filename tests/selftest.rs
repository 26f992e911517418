//! The built-in cases of `qae selftest` on the backends that need no GPU: the CPU path, which has
//! to give the reference's bits, and the CUDA kernels' own source on the emulator.

use qae::selftest::{F32_TOLERANCE, Subject, cases, run};
use qae::{
    AdvantageConfig, AdvantageOutput, Config, CpuBackend, Error, Groups, LossOutput, Result,
    TokenBatch,
};
use qae_emulator::EmulatorBackend;

struct Emulator;

impl Subject for Emulator {
    fn name(&self) -> String {
        "emulator".to_owned()
    }

    fn tolerance(&self) -> f64 {
        F32_TOLERANCE
    }

    fn advantages(
        &self,
        rewards: &[f32],
        groups: &Groups,
        config: &AdvantageConfig,
    ) -> Result<(AdvantageOutput, Vec<u32>)> {
        let run = EmulatorBackend::default().run_advantages(rewards, groups, config)?;
        let active = run.active.iter().map(|&response| response as u32);
        Ok((run.output, active.collect()))
    }

    fn loss_from_log_probs(
        &self,
        batch: &TokenBatch<'_>,
        config: &Config,
        narrow_gradient: bool,
    ) -> Result<LossOutput> {
        let backend = EmulatorBackend {
            narrow_gradient,
            ..EmulatorBackend::default()
        };
        Ok(backend.run_loss(batch, config)?.output)
    }
}

fn assert_passes(subject: &dyn Subject) {
    let report = run(subject).expect("the reference accepts every case");
    assert_eq!(report.num_mismatches(), 0, "\n{report}");
}

#[test]
fn the_cpu_gives_the_bits_of_the_reference() {
    assert_passes(&CpuBackend);
}

#[test]
fn the_kernels_agree_with_the_reference() {
    assert_passes(&Emulator);
}

#[test]
fn cases_have_names_of_their_own() {
    let cases = cases();
    let mut names: Vec<_> = cases.iter().map(|case| case.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), cases.len());
}

/// Wrong in one value of one output.
struct Wrong(fn(&mut LossOutput));

impl Subject for Wrong {
    fn name(&self) -> String {
        "wrong".to_owned()
    }

    fn tolerance(&self) -> f64 {
        F32_TOLERANCE
    }

    fn advantages(
        &self,
        rewards: &[f32],
        groups: &Groups,
        config: &AdvantageConfig,
    ) -> Result<(AdvantageOutput, Vec<u32>)> {
        CpuBackend.advantages(rewards, groups, config)
    }

    fn loss_from_log_probs(
        &self,
        batch: &TokenBatch<'_>,
        config: &Config,
        narrow_gradient: bool,
    ) -> Result<LossOutput> {
        let mut output = CpuBackend.loss_from_log_probs(batch, config, narrow_gradient)?;
        (self.0)(&mut output);
        Ok(output)
    }
}

#[test]
fn a_wrong_value_anywhere_is_a_mismatch() {
    let wrongs = [
        (
            "loss",
            (|output| output.metrics.loss += 1.0) as fn(&mut LossOutput),
        ),
        ("tokens", |output| output.metrics.tokens += 1),
        ("groups", |output| output.metrics.groups.num_groups += 1),
        ("active_rows", |output| output.active_rows.push(7)),
        ("min_ratio", |output| output.metrics.min_ratio = f64::NAN),
    ];
    for (field, wrong) in wrongs {
        let report = run(&Wrong(wrong)).unwrap();
        let losses = report.outcomes.iter();
        let mut losses = losses.filter(|outcome| !outcome.case.starts_with("advantages "));
        assert!(
            losses.all(|outcome| !outcome.is_ok && outcome.field == field),
            "{report}"
        );
    }
}

#[test]
fn a_call_that_fails_is_a_mismatch_with_its_reason() {
    struct Failing;
    impl Subject for Failing {
        fn name(&self) -> String {
            "failing".to_owned()
        }
        fn tolerance(&self) -> f64 {
            0.0
        }
        fn advantages(
            &self,
            _: &[f32],
            _: &Groups,
            _: &AdvantageConfig,
        ) -> Result<(AdvantageOutput, Vec<u32>)> {
            Err(Error::NoDevice("unplugged".to_owned()))
        }
        fn loss_from_log_probs(
            &self,
            _: &TokenBatch<'_>,
            _: &Config,
            _: bool,
        ) -> Result<LossOutput> {
            Err(Error::NoDevice("unplugged".to_owned()))
        }
    }
    let report = run(&Failing).unwrap();
    assert_eq!(report.num_mismatches(), cases().len());
    assert!(report.to_string().contains("unplugged"), "{report}");
    assert!(report.to_string().contains("MISMATCH"), "{report}");
}

#[test]
fn the_command_fails_with_one_line_where_there_is_no_gpu() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_qae"))
        .arg("selftest")
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    if output.status.success() {
        assert!(stdout.contains(" 0 mismatches"), "{stdout}");
    } else {
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(
            (stdout.as_str(), stderr.lines().count()),
            ("", 1),
            "{stderr}"
        );
        assert!(stderr.contains("the self-test did not run"), "{stderr}");
    }
}
