//! The policy: a softmax of its own for each query and position, a product of them for a response.

/// Tokens to choose from.
pub const VOCABULARY: usize = 8;
/// Longest response, in tokens.
pub const POSITIONS: usize = 64;
/// The token that is right; which one it is makes no difference, since nothing is shared.
pub const USUAL_TOKEN: usize = 0;

/// Logits, [num_queries, POSITIONS, VOCABULARY].
pub struct Policy {
    pub logits: Vec<f32>,
}

impl Policy {
    /// The same at every position.
    pub fn new(num_queries: usize, usual_logit: f32) -> Self {
        let mut logits = vec![0.0; num_queries * POSITIONS * VOCABULARY];
        for row in logits.chunks_exact_mut(VOCABULARY) {
            row[USUAL_TOKEN] = usual_logit;
        }
        Self { logits }
    }

    pub fn num_queries(&self) -> usize {
        self.logits.len() / (POSITIONS * VOCABULARY)
    }

    pub fn distribution(&self, query: usize, position: usize) -> TokenDistribution {
        let start = Self::row_start(query, position);
        let logits = &self.logits[start..start + VOCABULARY];
        TokenDistribution::of(logits.try_into().expect("a row has VOCABULARY logits"))
    }

    /// Where a row of logits starts.
    pub fn row_start(query: usize, position: usize) -> usize {
        (query * POSITIONS + position) * VOCABULARY
    }
}

/// softmax of one row, its logarithm and entropy in nats.
#[derive(Clone, Copy)]
pub struct TokenDistribution {
    pub probability: [f64; VOCABULARY],
    pub log_probability: [f64; VOCABULARY],
    pub entropy: f64,
}

impl TokenDistribution {
    pub fn of(logits: &[f32; VOCABULARY]) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut log_probability = logits.map(|logit| f64::from(logit) - f64::from(max));
        let mut probability = log_probability.map(f64::exp);
        let sum: f64 = probability.iter().sum();
        let (inverse, log_sum) = (1.0 / sum, sum.ln());
        let mut entropy = 0.0;
        for (p, log_p) in probability.iter_mut().zip(&mut log_probability) {
            *p *= inverse;
            *log_p -= log_sum;
            entropy -= *p * *log_p;
        }
        Self {
            probability,
            log_probability,
            entropy,
        }
    }

    /// The token at which the probabilities before it add up to `unit` of [0, 1).
    pub fn token(&self, unit: f64) -> u8 {
        let mut sum = 0.0;
        for (token, p) in self.probability.iter().enumerate() {
            sum += p;
            if unit < sum {
                return token as u8;
            }
        }
        (VOCABULARY - 1) as u8
    }
}
