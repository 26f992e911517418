//! Adam and plain gradient descent.

const BETA: (f64, f64) = (0.9, 0.999);
const EPSILON: f32 = 1e-8;

pub enum Optimizer {
    Adam(Adam),
    Sgd { learning_rate: f32 },
}

/// Kingma & Ba, 1412.6980, with bias correction.
pub struct Adam {
    learning_rate: f64,
    steps: i32,
    mean: Vec<f32>,
    mean_square: Vec<f32>,
}

impl Adam {
    pub fn new(learning_rate: f64, num_parameters: usize) -> Self {
        Self {
            learning_rate,
            steps: 0,
            mean: vec![0.0; num_parameters],
            mean_square: vec![0.0; num_parameters],
        }
    }

    fn step(&mut self, parameters: &mut [f32], gradient: &[f32]) {
        self.steps += 1;
        let rate = (self.learning_rate / (1.0 - BETA.0.powi(self.steps))) as f32;
        let correction = (1.0 / (1.0 - BETA.1.powi(self.steps))) as f32;
        let (beta, gamma) = (BETA.0 as f32, BETA.1 as f32);
        let moments = self.mean.iter_mut().zip(&mut self.mean_square);
        for ((parameter, &g), (mean, square)) in parameters.iter_mut().zip(gradient).zip(moments) {
            *mean = beta * *mean + (1.0 - beta) * g;
            *square = gamma * *square + (1.0 - gamma) * g * g;
            *parameter -= rate * *mean / ((*square * correction).sqrt() + EPSILON);
        }
    }
}

impl Optimizer {
    pub fn step(&mut self, parameters: &mut [f32], gradient: &[f32]) {
        match self {
            Self::Adam(adam) => adam.step(parameters, gradient),
            Self::Sgd { learning_rate } => {
                for (parameter, g) in parameters.iter_mut().zip(gradient) {
                    *parameter -= *learning_rate * g;
                }
            }
        }
    }
}
