//! The policy objective of a configuration, chosen once for all tokens of a response.

use crate::reference::{Clip, PolicyTerm, Ratio, reinforce, sapo};

/// The term of one token, before any weight.
pub(super) trait Policy: Copy {
    fn term(self, ratio: Ratio, log_prob: f64, advantage: f64) -> PolicyTerm;
}

impl Policy for Clip {
    #[inline(always)]
    fn term(self, ratio: Ratio, _: f64, advantage: f64) -> PolicyTerm {
        self.ppo(ratio, advantage)
    }
}

/// The clip with the ratio of the response.
#[derive(Clone, Copy)]
pub(super) struct Gspo {
    pub clip: Clip,
    pub ratio: Ratio,
}

impl Policy for Gspo {
    #[inline(always)]
    fn term(self, _: Ratio, _: f64, advantage: f64) -> PolicyTerm {
        self.clip.ppo(self.ratio, advantage)
    }
}

#[derive(Clone, Copy)]
pub(super) struct Cispo(pub Clip);

impl Policy for Cispo {
    #[inline(always)]
    fn term(self, ratio: Ratio, log_prob: f64, advantage: f64) -> PolicyTerm {
        self.0.cispo(ratio, log_prob, advantage)
    }
}

#[derive(Clone, Copy)]
pub(super) struct Sapo {
    pub tau_positive: f64,
    pub tau_negative: f64,
}

impl Policy for Sapo {
    #[inline(always)]
    fn term(self, ratio: Ratio, _: f64, advantage: f64) -> PolicyTerm {
        let positive = advantage > 0.0;
        let tau = if positive {
            self.tau_positive
        } else {
            self.tau_negative
        };
        sapo(tau, ratio, advantage)
    }
}

#[derive(Clone, Copy)]
pub(super) struct Reinforce;

impl Policy for Reinforce {
    #[inline(always)]
    fn term(self, _: Ratio, log_prob: f64, advantage: f64) -> PolicyTerm {
        reinforce(log_prob, advantage)
    }
}
