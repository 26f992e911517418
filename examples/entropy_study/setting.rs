//! Setting X and its two controls.

use crate::optimizer::{Adam, Optimizer};
use crate::task::Lengths;

/// Responses to a query (G).
pub const GROUP_SIZE: usize = 8;
pub const NUM_QUERIES: usize = 128;

/// How the policy is trained.
pub struct Setting {
    pub name: &'static str,
    pub description: &'static str,
    pub lengths: Lengths,
    /// Queries of a rollout that have responses of both outcomes, at most.
    pub batch: usize,
    /// Queries of a gradient step.
    pub mini_batch: usize,
    /// Passes over a rollout.
    pub epochs: usize,
    /// Adam, or else plain gradient descent.
    pub adam: bool,
}

/// Of Adam.
const ADAM_LEARNING_RATE: f64 = 0.01;
/// Of plain gradient descent.
const SGD_LEARNING_RATE: f32 = 1000.0;

const X: Setting = Setting {
    name: "Setting X",
    description: "4 to 64 tokens, 4 epochs of 16-query mini-batches, Adam 0.01",
    lengths: Lengths::Random,
    batch: 64,
    mini_batch: 16,
    epochs: 4,
    adam: true,
};

impl Setting {
    /// Setting X, which a search selected; the same with responses of one length; and the null
    /// control, in which every gradient step is on policy.
    pub fn all() -> Vec<Self> {
        vec![
            X,
            Self {
                name: "Fixed length",
                description: "as X, with 34 tokens",
                lengths: Lengths::Fixed,
                ..X
            },
            Self {
                name: "Null control",
                description: "as X, with one step of plain SGD for each rollout",
                mini_batch: X.batch,
                epochs: 1,
                adam: false,
                ..X
            },
        ]
    }

    pub fn optimizer(&self, num_parameters: usize) -> Optimizer {
        if self.adam {
            Optimizer::Adam(Adam::new(ADAM_LEARNING_RATE, num_parameters))
        } else {
            Optimizer::Sgd {
                learning_rate: SGD_LEARNING_RATE,
            }
        }
    }
}
