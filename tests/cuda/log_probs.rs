//! `log_probs_from_logits` and its backward pass on tensors in device memory.

use crate::device;
use qae::cuda::cudarc::driver::CudaSlice;
use qae::cuda::{
    self, Device, DeviceLogits, DeviceLogitsRows, DeviceSlice, DeviceTensor, DeviceTensorMut,
    Graph, LogProbsDerivatives, LogProbsOutputs, LogitsGradient, SoftmaxStats, Stream,
};
use qae::{Error, Gradient, LogProbsInput, Logits, Tensor, reference};

const NUM_ROWS: usize = 48;
const VOCAB_SIZE: usize = 5003;
const TEMPERATURE: f64 = 0.7;

/// The tensors of a forward and a backward pass.
struct Tensors {
    host: Vec<f32>,
    host_token_id: Vec<i32>,
    values: CudaSlice<f32>,
    token_id: CudaSlice<i32>,
    d_log_prob: CudaSlice<f32>,
    log_prob: CudaSlice<f32>,
    stats: CudaSlice<SoftmaxStats>,
    d_logits: CudaSlice<f32>,
}

/// Every third row has no derivative.
fn d_log_prob(row: usize) -> f32 {
    [1.5, 0.0, -0.25][row % 3]
}

impl Tensors {
    fn new(stream: &Stream) -> Self {
        let memory = stream.cudarc();
        let host: Vec<f32> = (0..NUM_ROWS * VOCAB_SIZE)
            .map(|i| (i * 7919 % 1021) as f32 / 64.0 - 8.0)
            .collect();
        let token = |row: usize| (row * 104_729 % VOCAB_SIZE) as i32;
        let host_token_id: Vec<i32> = (0..NUM_ROWS).map(token).collect();
        let derivatives: Vec<f32> = (0..NUM_ROWS).map(d_log_prob).collect();
        Self {
            values: memory.clone_htod(&host).unwrap(),
            token_id: memory.clone_htod(&host_token_id).unwrap(),
            d_log_prob: memory.clone_htod(&derivatives).unwrap(),
            log_prob: memory.alloc_zeros(NUM_ROWS).unwrap(),
            stats: memory.alloc_zeros(NUM_ROWS).unwrap(),
            d_logits: memory.alloc_zeros(host.len()).unwrap(),
            host,
            host_token_id,
        }
    }

    fn forward(&mut self, stream: &Stream) -> qae::Result<()> {
        let values = DeviceTensor::F32((&self.values).into());
        let logits = DeviceLogits::contiguous(values, VOCAB_SIZE);
        let rows = DeviceLogitsRows {
            temperature: TEMPERATURE,
            ..DeviceLogitsRows::new(DeviceSlice::from(&self.token_id))
        };
        let mut outputs = LogProbsOutputs {
            log_prob: Some((&mut self.log_prob).into()),
            stats: Some((&mut self.stats).into()),
            ..LogProbsOutputs::default()
        };
        cuda::log_probs_from_logits(stream, &logits, &rows, None, &mut outputs)
    }

    /// Of the logits, which survive unless `in_place`.
    fn backward(&mut self, stream: &Stream, gradient: Gradient, in_place: bool) -> qae::Result<()> {
        let values = if in_place {
            LogitsGradient::InPlace(DeviceTensorMut::F32((&mut self.values).into()))
        } else {
            let d_logits = DeviceTensorMut::F32((&mut self.d_logits).into());
            LogitsGradient::apart(DeviceTensor::F32((&self.values).into()), d_logits)
        };
        let mut logits = DeviceLogits::contiguous(values, VOCAB_SIZE);
        let rows = DeviceLogitsRows {
            temperature: TEMPERATURE,
            ..DeviceLogitsRows::new(DeviceSlice::from(&self.token_id))
        };
        let derivatives = LogProbsDerivatives {
            stats: (&self.stats).into(),
            d_log_prob: (&self.d_log_prob).into(),
            d_entropy: None,
        };
        cuda::log_probs_from_logits_backward(stream, &mut logits, &rows, &derivatives, gradient)
    }

    fn input(&self) -> LogProbsInput<'_> {
        LogProbsInput {
            logits: Logits::contiguous(Tensor::F32(&self.host), VOCAB_SIZE),
            token_id: &self.host_token_id,
            mask: None,
            temperature: TEMPERATURE,
        }
    }
}

fn read(stream: &Stream, tensor: &CudaSlice<f32>) -> Vec<f32> {
    let values = stream.cudarc().clone_dtoh(tensor).unwrap();
    stream.synchronize().unwrap();
    values
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn assert_close(found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    let close = |(found, expected): (&f32, &f64)| (f64::from(*found) - expected).abs() <= tolerance;
    let wrong = found.iter().zip(expected).position(|pair| !close(pair));
    assert_eq!(wrong, None);
}

#[test]
fn rows_agree_with_the_reference_and_inactive_ones_are_left_alone() {
    let Some(device) = device("rows_agree_with_the_reference_and_inactive_ones_are_left_alone")
    else {
        return;
    };
    let stream = Stream::new(&device).unwrap();
    let mut tensors = Tensors::new(&stream);
    tensors.forward(&stream).unwrap();
    let expected = reference::log_probs_from_logits(&tensors.input()).unwrap();
    assert_close(&read(&stream, &tensors.log_prob), &expected.log_prob, 1e-4);

    let derivatives: Vec<f32> = (0..NUM_ROWS).map(d_log_prob).collect();
    let expected =
        reference::log_probs_from_logits_backward(&tensors.input(), &derivatives, None).unwrap();
    tensors
        .backward(&stream, Gradient::ZeroFill, false)
        .unwrap();
    let apart = read(&stream, &tensors.d_logits);
    assert_close(&apart, &expected, 3e-5);

    tensors
        .backward(&stream, Gradient::Untouched, true)
        .unwrap();
    let in_place = read(&stream, &tensors.values);
    for (row, found) in in_place.chunks(VOCAB_SIZE).enumerate() {
        let columns = row * VOCAB_SIZE..(row + 1) * VOCAB_SIZE;
        let expected = match d_log_prob(row) {
            0.0 => &tensors.host[columns],
            _ => &apart[columns],
        };
        assert!(bits(found) == bits(expected), "row {row}");
    }
}

#[test]
fn a_graph_of_both_passes_replays_the_same_bits() {
    let Some(device) = device("a_graph_of_both_passes_replays_the_same_bits") else {
        return;
    };
    // SAFETY: everything of this test is used and freed on the one stream.
    unsafe { device.context().disable_event_tracking() };
    let stream = Stream::new(&device).unwrap();
    let mut tensors = Tensors::new(&stream);
    let mut step = |stream: &Stream| {
        tensors.forward(stream)?;
        tensors.backward(stream, Gradient::ZeroFill, false)
    };
    step(&stream).unwrap();
    let graph = Graph::capture(&stream, || step(&stream)).unwrap();
    let eager = bits(&read(&stream, &tensors.d_logits));
    for _ in 0..3 {
        let poison = vec![f32::NAN; NUM_ROWS * VOCAB_SIZE];
        let memory = stream.cudarc();
        memory.memcpy_htod(&poison, &mut tensors.d_logits).unwrap();
        // SAFETY: `tensors` holds all memory of the captured launches.
        unsafe { graph.replay() }.unwrap();
        assert!(bits(&read(&stream, &tensors.d_logits)) == eager);
    }
}

/// [responses, width, columns] of which the last row of each response is not taken.
#[test]
fn responses_may_have_a_stride_of_their_own() {
    let Some(device) = device("responses_may_have_a_stride_of_their_own") else {
        return;
    };
    let stream = Stream::new(&device).unwrap();
    let mut tensors = Tensors::new(&stream);
    tensors.forward(&stream).unwrap();
    let all = read(&stream, &tensors.log_prob);
    let (width, taken) = (NUM_ROWS / 6, NUM_ROWS / 6 - 1);
    let is_taken = |row: &usize| row % width < taken;
    let token_id: Vec<i64> = (0..NUM_ROWS)
        .filter(is_taken)
        .map(|row| tensors.host_token_id[row].into())
        .collect();
    let memory = stream.cudarc();
    let token_id = memory.clone_htod(&token_id).unwrap();
    let mut log_prob = memory.alloc_zeros::<f32>(6 * taken).unwrap();
    let len = NUM_ROWS * VOCAB_SIZE - VOCAB_SIZE;
    let logits = DeviceLogits {
        values: DeviceTensor::F32(tensors.values.slice(..len).into()),
        vocab_size: VOCAB_SIZE,
        row_stride: VOCAB_SIZE,
        response_stride: Some(width * VOCAB_SIZE),
    };
    let rows = DeviceLogitsRows {
        width: Some(taken),
        temperature: TEMPERATURE,
        ..DeviceLogitsRows::new(DeviceSlice::from(&token_id))
    };
    let mut outputs = LogProbsOutputs {
        log_prob: Some((&mut log_prob).into()),
        ..LogProbsOutputs::default()
    };
    cuda::log_probs_from_logits(&stream, &logits, &rows, None, &mut outputs).unwrap();
    let expected: Vec<f32> = (0..NUM_ROWS).filter(is_taken).map(|row| all[row]).collect();
    assert!(bits(&read(&stream, &log_prob)) == bits(&expected));
}

fn refusal(device: &Device, change: fn(&mut DeviceLogitsRows<'_>)) -> String {
    let stream = Stream::new(device).unwrap();
    let mut tensors = Tensors::new(&stream);
    let values = DeviceTensor::F32((&tensors.values).into());
    let logits = DeviceLogits::contiguous(values, VOCAB_SIZE);
    let mut rows = DeviceLogitsRows::new(DeviceSlice::from(&tensors.token_id));
    change(&mut rows);
    let mut outputs = LogProbsOutputs {
        log_prob: Some((&mut tensors.log_prob).into()),
        ..LogProbsOutputs::default()
    };
    let launched = cuda::log_probs_from_logits(&stream, &logits, &rows, None, &mut outputs);
    launched.unwrap_err().to_string()
}

#[test]
fn rows_that_do_not_fit_are_refused() {
    let Some(device) = device("rows_that_do_not_fit_are_refused") else {
        return;
    };
    let error = refusal(&device, |rows| rows.temperature = 0.0);
    assert!(error.starts_with("temperature: expected"), "{error}");
    let error = refusal(&device, |rows| rows.width = Some(7));
    assert!(error.starts_with("width: expected a divisor"), "{error}");
    // Log-probs of a shard.
    let error = refusal(&device, |rows| rows.vocab_start = Some(0));
    assert!(error.starts_with("log_prob: expected none"), "{error}");

    let stream = Stream::new(&device).unwrap();
    let mut tensors = Tensors::new(&stream);
    let error = tensors.backward(&stream, Gradient::Compact, false);
    let error = error.unwrap_err().to_string();
    assert!(error.starts_with("gradient: expected"), "{error}");
    let shards = (&tensors.stats).into();
    let mut outputs = LogProbsOutputs::default();
    let error = cuda::merge_softmax_stats(&stream, &shards, 2, None, 1.0, &mut outputs);
    assert!(matches!(error, Err(Error::Missing { .. })), "{error:?}");
}
