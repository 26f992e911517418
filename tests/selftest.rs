//! The built-in cases of `qae selftest` on the backends that need no GPU: the CPU path, which has
//! to give the reference's bits, and the CUDA kernels' own source on the emulator.

use qae::selftest::{F32_TOLERANCE, LogProbsCall, Placement, Subject, cases, run};
use qae::{
    AdvantageConfig, AdvantageOutput, Config, CpuBackend, Error, Factor, Gradient, GradientRows,
    Groups, LogProbsOutput, LogitsBatch, LogitsOutput, LossOutput, Result, Tensor, TokenBatch,
};
use qae_emulator::{EmulatorBackend, LogitsPlacement, ScaledPlace};

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

    fn log_probs_from_logits(
        &self,
        call: &LogProbsCall<'_>,
        placement: &Placement,
    ) -> Result<(LogProbsOutput, Vec<f64>)> {
        let backend = placed(placement);
        let (input, d_log_prob, d_entropy) = (&call.input, call.d_log_prob, call.d_entropy);
        if let Some(shards) = call.shards {
            let run = backend.run_softmax_shards(input, shards, d_log_prob, d_entropy)?;
            return Ok((run.output, run.d_logits));
        }
        let output = backend.run_log_probs_from_logits(input)?.output;
        let gradient = Gradient::ZeroFill;
        let run =
            backend.run_log_probs_from_logits_backward(input, d_log_prob, d_entropy, gradient)?;
        Ok((output, run.d_logits))
    }

    fn loss_from_logits(
        &self,
        batch: &LogitsBatch<'_>,
        config: &Config,
        placement: &Placement,
    ) -> Result<LogitsOutput> {
        Ok(placed(placement)
            .run_loss_from_logits(batch, config)?
            .output)
    }

    fn scale_gradient(
        &self,
        gradient: &GradientRows<Tensor<'_>>,
        factor: &Factor<'_>,
        placement: &Placement,
    ) -> Result<Vec<f64>> {
        let place = match placement.in_place {
            true => ScaledPlace::InPlace,
            false => ScaledPlace::Apart {
                dtype: placement.scaled_dtype(gradient.values.dtype()),
                row_stride: gradient.row_stride,
                response_stride: None,
            },
        };
        let run = placed(placement).run_scale_gradient(gradient, factor, place, false)?;
        Ok(run.scaled)
    }
}

fn placed(placement: &Placement) -> EmulatorBackend {
    EmulatorBackend {
        narrow_gradient: placement.narrow_gradient,
        logits: LogitsPlacement {
            row_policy: placement.row_policy,
            in_place: placement.in_place,
            misalignment: placement.misalignment,
            gradient_misalignment: placement.gradient_misalignment,
            wide_token_ids: placement.wide_token_ids,
            ..LogitsPlacement::default()
        },
        ..EmulatorBackend::default()
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

/// Wrong in one value of one output of each operation but `advantages`.
struct Wrong {
    loss: fn(&mut LossOutput),
    logits: fn(&mut LogitsOutput),
    log_probs: fn(&mut LogProbsOutput),
    scaled: fn(&mut Vec<f64>),
}

const RIGHT: Wrong = Wrong {
    loss: |_| {},
    logits: |_| {},
    log_probs: |_| {},
    scaled: |_| {},
};

impl Wrong {
    /// Asserts that the cases whose names `is_of` accepts find `field` wrong.
    fn assert_found(&self, is_of: fn(&str) -> bool, field: &str) {
        let report = run(self).unwrap();
        let outcomes = report.outcomes.iter();
        let mut outcomes = outcomes.filter(|outcome| is_of(&outcome.case)).peekable();
        assert!(outcomes.peek().is_some());
        for outcome in outcomes {
            let is_found = !outcome.is_ok && outcome.field.starts_with(field);
            assert!(is_found, "{outcome:?} instead of {field}");
        }
    }
}

fn is_from_logits(case: &str) -> bool {
    case.starts_with("logits ")
}

fn is_of_log_probs(case: &str) -> bool {
    case.starts_with("log-probs ")
}

fn is_of_scale(case: &str) -> bool {
    case.starts_with("scale ")
}

fn is_from_log_probs(case: &str) -> bool {
    let is_other = is_from_logits(case) || is_of_log_probs(case) || is_of_scale(case);
    !case.starts_with("advantages ") && !is_other
}

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
        (self.loss)(&mut output);
        Ok(output)
    }

    fn log_probs_from_logits(
        &self,
        call: &LogProbsCall<'_>,
        placement: &Placement,
    ) -> Result<(LogProbsOutput, Vec<f64>)> {
        let (mut output, d_logits) = Subject::log_probs_from_logits(&CpuBackend, call, placement)?;
        (self.log_probs)(&mut output);
        Ok((output, d_logits))
    }

    fn loss_from_logits(
        &self,
        batch: &LogitsBatch<'_>,
        config: &Config,
        placement: &Placement,
    ) -> Result<LogitsOutput> {
        let mut output = Subject::loss_from_logits(&CpuBackend, batch, config, placement)?;
        (self.logits)(&mut output);
        Ok(output)
    }

    fn scale_gradient(
        &self,
        gradient: &GradientRows<Tensor<'_>>,
        factor: &Factor<'_>,
        placement: &Placement,
    ) -> Result<Vec<f64>> {
        let mut scaled = CpuBackend.scale_gradient(gradient, factor, placement)?;
        (self.scaled)(&mut scaled);
        Ok(scaled)
    }
}

/// No result is +∞, and a tensor without an element has no more of them.
fn spoil(values: &mut Vec<f64>) {
    match values.first_mut() {
        Some(value) => *value = f64::INFINITY,
        None => values.push(f64::INFINITY),
    }
}

#[test]
fn a_wrong_value_anywhere_in_a_loss_is_a_mismatch() {
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
    for (field, loss) in wrongs {
        Wrong { loss, ..RIGHT }.assert_found(is_from_log_probs, field);
    }
}

#[test]
fn a_wrong_value_anywhere_from_logits_is_a_mismatch() {
    let wrongs = [
        (
            "loss",
            (|output| output.loss.metrics.loss += 1.0) as fn(&mut LogitsOutput),
        ),
        ("active_slots", |output| output.active_slots.push(7)),
        ("log_prob", |output| spoil(&mut output.log_prob)),
        ("entropy", |output| spoil(&mut output.entropy)),
        ("d_logits", |output| spoil(&mut output.d_logits)),
        ("entropy tokens", |output| {
            output.loss.metrics.entropy.as_mut().unwrap().zero_tokens += 1;
        }),
    ];
    for (field, logits) in wrongs {
        Wrong { logits, ..RIGHT }.assert_found(is_from_logits, field);
    }
    let log_probs = |output: &mut LogProbsOutput| spoil(&mut output.log_sum_exp);
    Wrong { log_probs, ..RIGHT }.assert_found(is_of_log_probs, "log_sum_exp");
    // Of the values, and no infinity of theirs.
    let scaled = |scaled: &mut Vec<f64>| scaled.push(0.0);
    Wrong { scaled, ..RIGHT }.assert_found(is_of_scale, "scaled");
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
        fn log_probs_from_logits(
            &self,
            _: &LogProbsCall<'_>,
            _: &Placement,
        ) -> Result<(LogProbsOutput, Vec<f64>)> {
            Err(Error::NoDevice("unplugged".to_owned()))
        }
        fn loss_from_logits(
            &self,
            _: &LogitsBatch<'_>,
            _: &Config,
            _: &Placement,
        ) -> Result<LogitsOutput> {
            Err(Error::NoDevice("unplugged".to_owned()))
        }
        fn scale_gradient(
            &self,
            _: &GradientRows<Tensor<'_>>,
            _: &Factor<'_>,
            _: &Placement,
        ) -> Result<Vec<f64>> {
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
