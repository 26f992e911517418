//! The operation against the same formulas in candle's own operations, differentiated by candle.

use candle_core::{DType, Device, Result, Tensor, Var};
use qae::{Config, Groups, Normalizer};
use qae_candle::policy_loss;

const ROWS: usize = 8;
const WIDTH: usize = 9;
const GROUP_SIZE: usize = 4;
const REWARDS: [f32; ROWS] = [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0];
const TOKENS: f64 = 60.0;

fn config() -> Config {
    Config {
        normalizer: Normalizer::Value(TOKENS),
        ..Config::default()
    }
}

struct Batch {
    log_prob: Var,
    old_log_prob: Tensor,
    mask: Tensor,
    groups: Groups,
}

impl Batch {
    /// Ratios from 0.7 to 1.4: both bounds of the clip hold some tokens.
    fn new() -> Result<Self> {
        let slots = ROWS * WIDTH;
        let cpu = &Device::Cpu;
        let ratio = |slot: usize| 0.7 + 0.7 * (slot * 7 % slots) as f32 / (slots - 1) as f32;
        let ratios: Vec<f32> = (0..slots).map(ratio).collect();
        let old_log_prob = Tensor::full(-1.25_f32, (ROWS, WIDTH), cpu)?;
        let log_ratio = Tensor::from_vec(ratios, (ROWS, WIDTH), cpu)?.log()?;
        let mask: Vec<u8> = (0..slots).map(|slot| u8::from(slot % 6 != 5)).collect();
        Ok(Self {
            log_prob: Var::from_tensor(&(&old_log_prob + log_ratio)?)?,
            old_log_prob,
            mask: Tensor::from_vec(mask, (ROWS, WIDTH), cpu)?,
            groups: Groups::uniform(ROWS, GROUP_SIZE).expect("whole groups"),
        })
    }

    fn loss(&self, log_prob: &Tensor, old_log_prob: &Tensor) -> Result<Tensor> {
        let given = (&self.mask, &REWARDS, &self.groups, &config());
        policy_loss(log_prob, old_log_prob, given.0, given.1, given.2, given.3)
    }

    /// DAPO's clipped loss with the advantages of two groups whose standard deviation is 0.5: the
    /// lone success has 2, the lone failure -2.
    fn expected_loss(&self) -> Result<Tensor> {
        let advantage = 1.0 / (0.5 + 1e-6);
        let mut advantages = [0.0; ROWS];
        (advantages[3], advantages[7]) = (advantage, -advantage);
        let advantages = Tensor::new(&advantages, &Device::Cpu)?.reshape((ROWS, 1))?;
        let log_prob = self.log_prob.to_dtype(DType::F64)?;
        let ratio = (log_prob - self.old_log_prob.to_dtype(DType::F64)?)?.exp()?;
        let unclipped = ratio.broadcast_mul(&advantages)?;
        let clipped = ratio
            .clamp(1.0 - 0.2, 1.0 + 0.28)?
            .broadcast_mul(&advantages)?;
        let token_loss = unclipped.minimum(&clipped)?.neg()?;
        (token_loss * self.mask.to_dtype(DType::F64)?)?.sum_all()? / TOKENS
    }
}

#[test]
fn loss_and_gradient_are_those_of_candles_own_operations() -> Result<()> {
    let batch = Batch::new()?;
    let loss = batch.loss(&batch.log_prob, &batch.old_log_prob)?;
    let expected = batch.expected_loss()?;
    let difference = f64::from(loss.to_scalar::<f32>()?) - expected.to_scalar::<f64>()?;
    assert!(difference.abs() < 1e-7, "{difference}");
    // Scaled, so that the derivative of the loss is not 1.
    let gradients = (loss * 3.0)?.backward()?;
    let expected = (expected * 3.0)?.backward()?;
    let of = |store: &candle_core::backprop::GradStore| {
        store
            .get(&batch.log_prob)
            .expect("a gradient")
            .to_vec2::<f32>()
    };
    let (found, expected) = (of(&gradients)?, of(&expected)?);
    for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert!(
            (found - expected).abs() <= 1e-6 * expected.abs(),
            "{found} {expected}"
        );
    }
    assert!(
        expected
            .iter()
            .flatten()
            .filter(|&&value| value != 0.0)
            .count()
            > 2
    );
    Ok(())
}

#[test]
fn what_would_be_read_wrongly_is_refused_by_name() -> Result<()> {
    let batch = Batch::new()?;
    let transposed = batch.old_log_prob.t()?.contiguous()?.t()?;
    let error = batch
        .loss(&batch.log_prob, &transposed)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("old_log_prob: expected a contiguous tensor"),
        "{error}"
    );
    let wide = batch.log_prob.to_dtype(DType::F64)?;
    let error = batch
        .loss(&wide, &batch.old_log_prob)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("log_prob: expected F32, found F64"),
        "{error}"
    );
    let short = batch.old_log_prob.narrow(0, 0, ROWS - 1)?;
    let error = batch.loss(&batch.log_prob, &short).unwrap_err().to_string();
    assert!(error.contains("old_log_prob"), "{error}");
    Ok(())
}

#[test]
fn a_view_into_a_larger_tensor_is_read_from_where_it_begins() -> Result<()> {
    let batch = Batch::new()?;
    let larger = Tensor::cat(&[&batch.old_log_prob.ones_like()?, &batch.old_log_prob], 0)?;
    let view = larger.narrow(0, ROWS, ROWS)?;
    let loss = batch.loss(&batch.log_prob, &view)?.to_scalar::<f32>()?;
    let expected = batch.loss(&batch.log_prob, &batch.old_log_prob)?;
    assert_eq!(loss, expected.to_scalar::<f32>()?);
    Ok(())
}
