//! Trains a policy with two parameters, a bandit with two arms, by candle's automatic
//! differentiation of qae's loss: `cargo run`.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use qae::{Config, Groups, Normalizer};
use qae_candle::policy_loss;

const GROUPS: usize = 4;
const GROUP_SIZE: usize = 16;
const STEPS: usize = 60;
const LEARNING_RATE: f64 = 0.5;
/// How often each arm pays 1.
const PAYS: [f32; 2] = [0.3, 0.7];

fn main() -> Result<()> {
    let rows = GROUPS * GROUP_SIZE;
    let groups = Groups::uniform(rows, GROUP_SIZE).map_err(candle_core::Error::wrap)?;
    let config = Config {
        normalizer: Normalizer::Value(rows as f64),
        ..Config::default()
    };
    // The policy prefers the arm that pays less.
    let logits = Var::new(&[1.0_f32, -1.0], &Device::Cpu)?;
    let mask = Tensor::ones((rows, 1), DType::U8, &Device::Cpu)?;
    let mut random = Random(1);
    for step in 0..=STEPS {
        let log_probs = log_softmax(&logits)?;
        let good = log_probs.get(1)?.exp()?.to_scalar::<f32>()?;
        if step % 10 == 0 {
            println!("step {step:2}: the better arm with probability {good:.3}");
        }
        let arms: Vec<u32> = (0..rows).map(|_| (random.next() < good).into()).collect();
        let rewards: Vec<f32> = (arms.iter())
            .map(|&arm| f32::from(random.next() < PAYS[arm as usize]))
            .collect();
        let arms = Tensor::from_vec(arms, rows, &Device::Cpu)?;
        let log_prob = log_probs.gather(&arms, 0)?.reshape((rows, 1))?;
        // The policy that sampled is the one that is trained: ratios are 1, gradients are not 0.
        let old_log_prob = log_prob.detach();
        let loss = policy_loss(&log_prob, &old_log_prob, &mask, &rewards, &groups, &config)?;
        let gradients = loss.backward()?;
        let gradient = gradients.get(&logits).expect("the loss depends on them");
        logits.set(&(logits.as_tensor() - (gradient * LEARNING_RATE)?)?)?;
    }
    let good = log_softmax(&logits)?.get(1)?.exp()?.to_scalar::<f32>()?;
    if good < 0.9 {
        candle_core::bail!("expected the better arm to win, found probability {good}");
    }
    Ok(())
}

fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    logits.broadcast_sub(&logits.log_sum_exp(D::Minus1)?)
}

/// Uniform in [0, 1) (xorshift64*), the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40) as f32 / (1 << 24) as f32
    }
}
