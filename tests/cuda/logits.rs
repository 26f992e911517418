//! `loss_from_logits` on tensors in device memory.

mod step;

use crate::device;
use half::bf16;
use qae::cuda::cudarc::driver::DevicePtrMut;
use qae::cuda::{
    self, Device, DeviceAdvantages, DeviceLayout, DeviceLogits, DeviceLogitsBatch, DeviceMetrics,
    DeviceNormalizer, DeviceSlice, DeviceTensor, DeviceTensorMut, ForeignSlice, Graph,
    LogitsGradient, LossFromLogitsOutputs, RowPolicy, Stream, Workspace,
};
use qae::{Config, Error, Gradient, Metrics, Normalizer};
use step::{Call, Inputs, NUM_SLOTS, Step, VOCAB_SIZE, calls};

#[test]
fn twenty_runs_from_logits_give_the_same_bits() {
    let Some(device) = device("twenty_runs_from_logits_give_the_same_bits") else {
        return;
    };
    let stream = Stream::new(&device).unwrap();
    let mut step = Step::new(&stream);
    for call in calls() {
        step.restore(&stream);
        step.launch(&stream, &call).unwrap();
        let first = step.results(&stream, &call);
        for run in 1..20 {
            step.restore(&stream);
            step.launch(&stream, &call).unwrap();
            assert!(step.results(&stream, &call) == first, "run {run} differs");
        }
    }
}

#[test]
fn in_place_gives_the_bits_of_apart() {
    let Some(device) = device("in_place_gives_the_bits_of_apart") else {
        return;
    };
    let stream = Stream::new(&device).unwrap();
    let mut step = Step::new(&stream);
    for call in &calls()[..3] {
        let [apart, in_place] = [false, true].map(|in_place| {
            let call = Call { in_place, ..*call };
            step.restore(&stream);
            step.launch(&stream, &call).unwrap();
            step.results(&stream, &call)
        });
        assert!(apart == in_place);
    }
}

#[test]
fn compact_rows_are_those_of_the_whole_gradient() {
    let Some(device) = device("compact_rows_are_those_of_the_whole_gradient") else {
        return;
    };
    let stream = Stream::new(&device).unwrap();
    let mut step = Step::new(&stream);
    let compact = calls()[3];
    let whole = Call {
        config: Config {
            gradient: Gradient::ZeroFill,
            ..compact.config
        },
        ..compact
    };
    step.restore(&stream);
    step.launch(&stream, &whole).unwrap();
    let (expected, _, metrics) = step.results(&stream, &whole);
    step.restore(&stream);
    step.launch(&stream, &compact).unwrap();
    let (found, ..) = step.results(&stream, &compact);
    let memory = stream.cudarc();
    let count = memory.clone_dtoh(&step.active_slot_count).unwrap()[0] as usize;
    let slots = memory.clone_dtoh(&step.active_slots).unwrap();
    assert_eq!(count as u64, metrics.active_tokens);
    assert!(count > 0 && slots[..count].is_sorted());
    let row = |rows: &[u16], row: usize| rows[row * VOCAB_SIZE..][..VOCAB_SIZE].to_vec();
    for (i, &slot) in slots[..count].iter().enumerate() {
        assert!(row(&found, i) == row(&expected, slot as usize), "row {i}");
    }
    let rest = &found[count * VOCAB_SIZE..];
    assert!(rest.iter().all(|&bits| bits == bf16::NAN.to_bits()));
}

#[test]
fn graphs_from_logits_replay_the_same_bits() {
    let Some(device) = device("graphs_from_logits_replay_the_same_bits") else {
        return;
    };
    // SAFETY: everything of this test is used and freed on the one stream.
    unsafe { device.context().disable_event_tracking() };
    let stream = Stream::new(&device).unwrap();
    let mut step = Step::new(&stream);
    for call in calls() {
        step.restore(&stream);
        step.launch(&stream, &call).unwrap();
        let eager = step.results(&stream, &call);
        let graph = Graph::capture(&stream, || step.launch(&stream, &call)).unwrap();
        for _ in 0..3 {
            step.restore(&stream);
            // SAFETY: `step` holds all memory of the captured launches.
            unsafe { graph.replay() }.unwrap();
            assert!(step.results(&stream, &call) == eager, "a replay differs");
        }
    }
}

#[test]
fn tokens_outside_the_vocabulary_are_counted_and_left_out() {
    let Some(device) = device("tokens_outside_the_vocabulary_are_counted_and_left_out") else {
        return;
    };
    let stream = Stream::new(&device).unwrap();
    let mut step = Step::new(&stream);
    let call = calls()[0];
    step.launch(&stream, &call).unwrap();
    assert_eq!(step.results(&stream, &call).2.out_of_range, 0);
    step.restore(&stream);
    let token_id = vec![VOCAB_SIZE as i64; NUM_SLOTS];
    step.inputs.token_id = stream.cudarc().clone_htod(&token_id).unwrap();
    step.launch(&stream, &call).unwrap();
    let (gradient, _, metrics) = step.results(&stream, &call);
    let valid = (0..NUM_SLOTS).filter(|slot| slot % 5 > 0).count();
    assert_eq!(metrics.out_of_range, valid as u64);
    assert_eq!((metrics.loss, metrics.nonfinite_tokens), (0.0, 0));
    assert!(gradient.iter().all(|&bits| bits == 0));
}

/// A launch whose logits and gradient are `values`.
fn launch_on(stream: &Stream, values: LogitsGradient<'_>, config: &Config) -> qae::Result<()> {
    let mut metrics = DeviceMetrics::new(stream)?;
    let inputs = Inputs::new(stream);
    let batch = inputs.batch();
    let bytes = cuda::loss_from_logits_workspace_bytes(stream, &batch, config)?;
    cuda::loss_from_logits(
        stream,
        &batch,
        &mut DeviceLogits::contiguous(values, VOCAB_SIZE),
        config,
        &DeviceNormalizer::Config,
        RowPolicy::Auto,
        &mut LossFromLogitsOutputs::new(&mut metrics),
        &mut Workspace::new(stream, bytes)?,
    )
}

#[test]
fn foreign_memory_that_overlaps_is_refused() {
    let Some(device) = device("foreign_memory_that_overlaps_is_refused") else {
        return;
    };
    let stream = Stream::new(&device).unwrap();
    let elements = NUM_SLOTS * VOCAB_SIZE;
    let mut memory = stream.cudarc().alloc_zeros::<bf16>(elements + 8).unwrap();
    let address = memory.device_ptr_mut(stream.cudarc()).0;
    let slice = |skipped: u64| {
        // SAFETY: `memory` is as long, outlives the test, and is written by nobody, as the launch
        // is refused.
        unsafe { ForeignSlice::<bf16>::new(&device, address + 2 * skipped, elements) }.unwrap()
    };
    let (logits, mut d_logits) = (slice(0), slice(8));
    let values = LogitsGradient::apart(
        DeviceTensor::Bf16(logits.as_slice()),
        DeviceTensorMut::Bf16(d_logits.as_slice_mut()),
    );
    let config = calls()[0].config;
    let error = launch_on(&stream, values, &config);
    let error = error.unwrap_err().to_string();
    assert!(
        error.starts_with("d_logits: expected the logits' own"),
        "{error}"
    );
}

#[test]
fn what_does_not_fit_logits_is_refused_before_the_launch() {
    let Some(device) = device("what_does_not_fit_logits_is_refused_before_the_launch") else {
        return;
    };
    let stream = Stream::new(&device).unwrap();
    let mut step = Step::new(&stream);
    let call = calls()[3];
    let in_place = Call {
        in_place: true,
        ..call
    };
    let error = step.launch(&stream, &in_place).unwrap_err().to_string();
    assert!(
        error.starts_with("d_logits: expected memory apart"),
        "{error}"
    );

    let mut wide = stream.cudarc().alloc_zeros::<f32>(step.host.len()).unwrap();
    let logits = stream.cudarc().clone_htod(&step.host).unwrap();
    let values = LogitsGradient::apart(
        DeviceTensor::Bf16((&logits).into()),
        DeviceTensorMut::F32((&mut wide).into()),
    );
    let error = launch_on(&stream, values, &call.config);
    let error = error.unwrap_err().to_string();
    assert!(
        error.starts_with("d_logits: expected dtype Bf16"),
        "{error}"
    );

    step.workspace = Workspace::new(&stream, 64).unwrap();
    let error = step.launch(&stream, &call).unwrap_err().to_string();
    assert!(error.starts_with("workspace: expected at least"), "{error}");
}

#[test]
fn rows_that_no_cluster_holds_are_refused_or_taken_by_blocks() {
    let Some(device) = device("rows_that_no_cluster_holds_are_refused_or_taken_by_blocks") else {
        return;
    };
    let launch = |row_policy| long_row(&device, row_policy);
    let error = launch(RowPolicy::Cluster).unwrap_err();
    assert!(
        matches!(&error, Error::Invalid { field, .. } if field == "row_policy"),
        "{error}"
    );
    let metrics = launch(RowPolicy::Auto).unwrap();
    // log_prob is −ln V, and so is old_log_prob.
    assert!((metrics.loss + 1.0).abs() < 1e-4, "{}", metrics.loss);
}

/// One token of f32 logits that are all 0, beyond the shared memory of any cluster.
fn long_row(device: &Device, row_policy: RowPolicy) -> qae::Result<Metrics> {
    const COLUMNS: usize = 1 << 20;
    let stream = Stream::new(device)?;
    let memory = stream.cudarc();
    let mut logits = memory.alloc_zeros::<f32>(COLUMNS).unwrap();
    let token_id = memory.clone_htod(&[7_i32]).unwrap();
    let old_log_prob = memory.clone_htod(&[-(COLUMNS as f32).ln()]).unwrap();
    let advantage = memory.clone_htod(&[1.0_f32]).unwrap();
    let batch = DeviceLogitsBatch {
        layout: DeviceLayout::padded(1, 1).into(),
        mask: None,
        token_id: DeviceSlice::from(&token_id).into(),
        old_log_prob: Some(DeviceTensor::F32((&old_log_prob).into())),
        ref_log_prob: None,
        importance_weight: None,
        advantages: DeviceAdvantages::PerResponse((&advantage).into()),
    };
    let config = Config {
        normalizer: Normalizer::Value(1.0),
        ..Config::default()
    };
    let bytes = cuda::loss_from_logits_workspace_bytes(&stream, &batch, &config)?;
    let mut metrics = DeviceMetrics::new(&stream)?;
    let in_place = LogitsGradient::InPlace(DeviceTensorMut::F32((&mut logits).into()));
    cuda::loss_from_logits(
        &stream,
        &batch,
        &mut DeviceLogits::contiguous(in_place, COLUMNS),
        &config,
        &DeviceNormalizer::Config,
        row_policy,
        &mut LossFromLogitsOutputs::new(&mut metrics),
        &mut Workspace::new(&stream, bytes)?,
    )?;
    metrics.read(&stream)
}
