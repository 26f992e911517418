//! What is asked of the policy: the rewards, and how long responses are.

use crate::policy::{POSITIONS, Policy, TokenDistribution, USUAL_TOKEN};
use crate::random::Random;

/// Leading tokens that all have to be right.
const DECISIVE: usize = 4;
/// Entropy of the untrained policy, in nats per token.
const INITIAL_ENTROPY: f64 = 0.45;
/// Success rate of the untrained policy.
const INITIAL_SUCCESS: f64 = 0.39;

/// How many tokens a response has; drawn before its tokens, not by the policy.
#[derive(Clone, Copy)]
pub enum Lengths {
    /// From 4 tokens to 64, all equally likely: 34 on average.
    Random,
    /// 34 tokens, so that failures are as long as successes.
    Fixed,
}

impl Lengths {
    fn range(self) -> std::ops::RangeInclusive<usize> {
        match self {
            Self::Random => DECISIVE..=POSITIONS,
            Self::Fixed => (DECISIVE + POSITIONS) / 2..=(DECISIVE + POSITIONS) / 2,
        }
    }

    pub fn draw(self, random: &mut Random) -> usize {
        let range = self.range();
        *range.start() + random.below(range.end() - range.start() + 1)
    }
}

/// A response succeeds if its decisive tokens are the usual one, and none of the others is an error:
/// every unusual one is, with a chance.
pub struct Task {
    pub lengths: Lengths,
    /// Chance that an unusual token after the decisive ones is an error.
    error_chance: f64,
    /// Of the usual token, the others having 0.
    pub usual_logit: f32,
}

impl Task {
    /// Whose two free numbers give the untrained policy its entropy and success rate.
    pub fn new(lengths: Lengths) -> Self {
        let entropy_excess = |logit: f64| {
            let mut logits = [0.0; 8];
            logits[USUAL_TOKEN] = logit as f32;
            TokenDistribution::of(&logits).entropy - INITIAL_ENTROPY
        };
        // Entropy falls from ln 8 with the logit, success falls with the chance of an error.
        let mut task = Self {
            lengths,
            error_chance: 0.0,
            usual_logit: root(entropy_excess, 0.0, 20.0) as f32,
        };
        let policy = Policy::new(1, task.usual_logit);
        let success_excess = |error_chance: f64| {
            let task = Self {
                error_chance,
                ..task
            };
            task.success(&policy) - INITIAL_SUCCESS
        };
        task.error_chance = root(success_excess, 0.0, 1.0);
        task
    }

    pub fn reward(&self, tokens: &[u8], random: &mut Random) -> f32 {
        let (decisive, others) = tokens.split_at(DECISIVE);
        let is_unusual = |&token: &u8| usize::from(token) != USUAL_TOKEN;
        let has_error = others
            .iter()
            .filter(|token| is_unusual(token))
            .any(|_| random.unit() < self.error_chance);
        let succeeds = !decisive.iter().any(is_unusual) && !has_error;
        f32::from(u8::from(succeeds))
    }

    /// The exact success rate, averaged over queries.
    pub fn success(&self, policy: &Policy) -> f64 {
        let queries = 0..policy.num_queries();
        let total: f64 = queries.map(|query| self.success_of(policy, query)).sum();
        total / policy.num_queries() as f64
    }

    fn success_of(&self, policy: &Policy, query: usize) -> f64 {
        let lengths = self.lengths.range();
        let mut survives = 1.0;
        let mut total = 0.0;
        for position in 0..*lengths.end() {
            let usual = policy.distribution(query, position).probability[USUAL_TOKEN];
            survives *= if position < DECISIVE {
                usual
            } else {
                1.0 - (1.0 - usual) * self.error_chance
            };
            if lengths.contains(&(position + 1)) {
                total += survives;
            }
        }
        total / lengths.count() as f64
    }

    /// The exact mean entropy of a token, in nats: over queries, lengths and positions.
    pub fn entropy(&self, policy: &Policy) -> f64 {
        let lengths = self.lengths.range();
        let (mut total, mut tokens) = (0.0, 0.0);
        for position in 0..*lengths.end() {
            let longer = lengths.clone().filter(|&length| length > position).count() as f64;
            for query in 0..policy.num_queries() {
                total += longer * policy.distribution(query, position).entropy;
                tokens += longer;
            }
        }
        total / tokens
    }
}

/// Where a falling function crosses 0, by bisection.
fn root(function: impl Fn(f64) -> f64, mut low: f64, mut high: f64) -> f64 {
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if function(middle) > 0.0 {
            low = middle;
        } else {
            high = middle;
        }
    }
    (low + high) / 2.0
}
