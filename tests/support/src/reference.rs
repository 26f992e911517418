use qae::{
    Backend, Config, LogProbsInput, LogProbsOutput, LogitsBatch, LogitsOutput, Result, Run,
    TokenBatch, reference,
};

/// The serial f64 oracle.
#[derive(Debug)]
pub struct Reference;

impl Backend for Reference {
    fn name(&self) -> String {
        "reference".to_owned()
    }

    fn loss_from_log_probs(&self, batch: &TokenBatch<'_>, config: &Config) -> Result<Run> {
        Ok(not_measured(reference::loss_from_log_probs(batch, config)?))
    }

    fn loss_from_logits(
        &self,
        batch: &LogitsBatch<'_>,
        config: &Config,
    ) -> Result<Run<LogitsOutput>> {
        Ok(not_measured(reference::loss_from_logits(batch, config)?))
    }

    fn log_probs_from_logits(&self, input: &LogProbsInput<'_>) -> Result<Run<LogProbsOutput>> {
        Ok(not_measured(reference::log_probs_from_logits(input)?))
    }

    fn log_probs_from_logits_backward(
        &self,
        input: &LogProbsInput<'_>,
        d_log_prob: &[f32],
        d_entropy: Option<&[f32]>,
    ) -> Result<Run<Vec<f64>>> {
        let d_logits = reference::log_probs_from_logits_backward(input, d_log_prob, d_entropy)?;
        Ok(not_measured(d_logits))
    }
}

fn not_measured<T>(output: T) -> Run<T> {
    Run {
        output,
        bytes_moved: 0,
        seconds: None,
    }
}
