//! One training run.

use crate::method::Method;
use crate::policy::{Policy, VOCABULARY};
use crate::random::Random;
use crate::rollout::{Rollout, distributions};
use crate::setting::{GROUP_SIZE, NUM_QUERIES, Setting};
use crate::task::Task;
use qae::{
    Advantages, AutoK, Config, GroupMetrics, Groups, Layout, Result, Tensor, TokenBatch, reference,
};
use std::ops::Range;

/// What a run was like, before the first rollout and after each.
pub struct Run {
    /// Exact, in nats per token.
    pub entropy: Vec<f64>,
    /// Exact.
    pub success: Vec<f64>,
    /// K of each rollout, where it is automatic.
    pub k: Vec<f64>,
    /// What automatic K steers toward, in nats.
    pub target_entropy: Option<f64>,
    /// Share of the kept responses whose advantage is 0, over the whole run; `None` if none was kept.
    pub zero_share: Option<f64>,
}

/// Trains a policy for a number of rollouts.
pub fn train(setting: &Setting, method: &Method, rollouts: usize, seed: u64) -> Result<Run> {
    let task = Task::new(setting.lengths);
    let mut random = Random(seed);
    let mut policy = Policy::new(NUM_QUERIES, task.usual_logit);
    let mut optimizer = setting.optimizer(policy.logits.len());
    let mut auto_k = method.auto_k.map(AutoK::new).transpose()?;
    let mut run = Run {
        entropy: vec![task.entropy(&policy)],
        success: vec![task.success(&policy)],
        k: vec![],
        target_entropy: None,
        zero_share: None,
    };
    let (mut zero, mut responses) = (0, 0);
    for _ in 0..rollouts {
        let rollout = Rollout::sample(&policy, &task, setting, &mut random);
        if let Some(auto_k) = &mut auto_k {
            run.k.push(auto_k.step(rollout.entropy)?.k);
        }
        let config = method.config(run.k.last().copied());
        for _ in 0..setting.epochs {
            for first in (0..rollout.query.len()).step_by(setting.mini_batch) {
                let groups = first..(first + setting.mini_batch).min(rollout.query.len());
                let (gradient, counts) = gradient(&policy, &rollout, groups, &config)?;
                optimizer.step(&mut policy.logits, &gradient);
                zero += counts.zero;
                responses += counts.positive + counts.zero + counts.negative;
            }
        }
        run.entropy.push(task.entropy(&policy));
        run.success.push(task.success(&policy));
    }
    run.target_entropy = auto_k.as_ref().and_then(AutoK::target_entropy);
    run.zero_share = (responses > 0).then(|| zero as f64 / responses as f64);
    Ok(run)
}

/// d loss / d logits of some groups, laid out as the policy's logits.
pub fn gradient(
    policy: &Policy,
    rollout: &Rollout,
    groups: Range<usize>,
    config: &Config,
) -> Result<(Vec<f32>, GroupMetrics)> {
    let responses = groups.start * GROUP_SIZE..groups.end * GROUP_SIZE;
    let slots = rollout.slots(&responses);
    let offsets: Vec<i64> = (rollout.offset[responses.start..=responses.end].iter())
        .map(|offset| offset - slots.start as i64)
        .collect();
    let softmax: Vec<_> = (rollout.query[groups.clone()].iter())
        .map(|&query| distributions(policy, query))
        .collect();
    let mut log_prob = Vec::with_capacity(slots.len());
    for response in responses.clone() {
        let rows = &softmax[response / GROUP_SIZE - groups.start];
        let tokens = &rollout.token[rollout.slots(&(response..response + 1))];
        for (row, &token) in rows.iter().zip(tokens) {
            log_prob.push(row.log_probability[usize::from(token)] as f32);
        }
    }
    let batch = TokenBatch {
        layout: Layout::Packed { offsets: &offsets },
        mask: None,
        log_prob: Tensor::F32(&log_prob),
        old_log_prob: Some(Tensor::F32(&rollout.old_log_prob[slots.clone()])),
        ref_log_prob: None,
        importance_weight: None,
        advantages: Advantages::FromRewards {
            rewards: &rollout.reward[responses.clone()],
            groups: &Groups::uniform(responses.len(), GROUP_SIZE)?,
            response_index: None,
        },
    };
    let loss = reference::loss_from_log_probs(&batch, config)?;
    loss.metrics.check()?;
    let mut gradient = vec![0.0; policy.logits.len()];
    for response in loss.active_rows {
        let response = responses.start + response as usize;
        let group = response / GROUP_SIZE;
        let rows = &softmax[group - groups.start];
        let start = Policy::row_start(rollout.query[group], 0);
        let tokens = rollout.slots(&(response..response + 1));
        let gradient = gradient[start..].chunks_exact_mut(VOCABULARY);
        for ((slot, row), gradient) in tokens.zip(rows).zip(gradient) {
            let g = loss.d_log_prob[slot - slots.start];
            for (gradient, p) in gradient.iter_mut().zip(row.probability) {
                *gradient -= (g * p) as f32;
            }
            gradient[usize::from(rollout.token[slot])] += g as f32;
        }
    }
    Ok((gradient, loss.metrics.groups))
}
