//! prime-rl's traces: episodes with the traces of several agents, single traces, and the rollouts
//! that verifiers wrote before.

use super::table::Described;
use super::{Format, ParseLine, Parsed, Reader, Source, estimate};
use crate::analyze::json::{Json, at, bytes, elements, fields, number, size};
use crate::analyze::options::{Options, RewardTerm};
use crate::analyze::record::{Record, hash, text_identity};

pub(super) fn source(format: Format, options: &Options) -> Result<Source, String> {
    let chosen = &options.columns;
    let columns = [
        ("--group", &chosen.group),
        ("--step", &chosen.step),
        ("--length", &chosen.length),
        ("--entropy", &chosen.entropy),
    ];
    for (flag, column) in columns {
        if column.is_some() {
            return Err(format!("expected no {flag} with {}", format.name()));
        }
    }
    let (group, length, prompt, step) = match format {
        Format::PrimeRlEpisodes => (
            "group.id",
            "nodes.mask",
            "nodes.token_ids",
            Some("run.work.step"),
        ),
        Format::PrimeRlTraces => ("group_id", "nodes.mask", "nodes.token_ids", None),
        _ => (
            "environment and example_id within a step",
            "token_usage.output_tokens",
            "token_usage.input_tokens",
            None,
        ),
    };
    let grouped_by = match options.group_size {
        Some(size) => format!("{size} neighboring responses"),
        None => group.to_string(),
    };
    let rewards = match &chosen.rewards[..] {
        [] if format == Format::VerifiersRollouts => vec![("reward".to_string(), 1.0)],
        [] => vec![("rewards".to_string(), 1.0)],
        terms => terms
            .iter()
            .map(|term| (term.name.clone(), term.weight))
            .collect(),
    };
    Ok(Source {
        format,
        reader: Reader::Lines(Box::new(PrimeRl {
            format,
            rewards: chosen.rewards.clone(),
            with_labels: options.by_group,
        })),
        described: Described {
            grouped_by,
            rewards,
            length: Some(length.to_string()),
            prompt_length: Some(prompt.to_string()),
            step: step.map(str::to_string),
            entropy: (format != Format::VerifiersRollouts).then(|| estimate("nodes.logprobs")),
        },
    })
}

struct PrimeRl {
    format: Format,
    /// Named rewards of the trace; all of them, by their own weights, if none.
    rewards: Vec<RewardTerm>,
    with_labels: bool,
}

impl ParseLine for PrimeRl {
    fn parse(
        &self,
        line: &[u8],
        step_of_file: Option<i64>,
        out: &mut Parsed,
    ) -> Result<(), String> {
        match self.format {
            Format::PrimeRlEpisodes => self.episode(line, step_of_file, out),
            Format::PrimeRlTraces => self.single_trace(line, step_of_file, out),
            _ => self.rollout(line, step_of_file, out),
        }
    }
}

impl PrimeRl {
    fn episode(
        &self,
        line: &[u8],
        step_of_file: Option<i64>,
        out: &mut Parsed,
    ) -> Result<(), String> {
        let [mut traces, mut group, mut task, mut run] = [None; 4];
        fields(line, |key, value| {
            match key {
                b"traces" => traces = Some(value),
                b"group" => group = Some(value),
                b"task" => task = Some(value),
                b"run" => run = Some(value),
                _ => {}
            }
            Ok(())
        })?;
        let Some(Json::Array(traces)) = traces else {
            return Err("`traces`: expected a list".to_string());
        };
        // Episodes that belong to no group are compared by their task.
        let name = text_at(group, &["id"])?
            .or(text_at(task, &["key"])?)
            .or(text_at(task, &["hash"])?)
            .ok_or("expected `group.id` or `task.key`, found neither")?;
        let step = match at(run, &["work", "step"])? {
            Some(Json::Number(text)) => {
                let step = std::str::from_utf8(text)
                    .ok()
                    .and_then(|step| step.parse().ok());
                Some(step.ok_or("`run.work.step`: expected an integer")?)
            }
            _ => step_of_file,
        };
        elements(traces, |trace| {
            let Json::Object(trace) = trace else {
                return Err("`traces`: expected objects".to_string());
            };
            self.take(self.trace(trace)?, name, step, out);
            Ok(())
        })
    }

    fn single_trace(
        &self,
        line: &[u8],
        step_of_file: Option<i64>,
        out: &mut Parsed,
    ) -> Result<(), String> {
        let mut group = None;
        fields(line, |key, value| {
            if key == b"group_id" {
                group = Some(value);
            }
            Ok(())
        })?;
        let Some(Json::String(name)) = group else {
            return Err("`group_id`: expected text".to_string());
        };
        self.take(self.trace(line)?, name, step_of_file, out);
        Ok(())
    }

    fn take(&self, trace: Trace<'_>, name: &[u8], step: Option<i64>, out: &mut Parsed) {
        let trace = match trace {
            Trace::Trained(trace) => trace,
            Trace::Failed => return out.fail(),
            Trace::OfAnotherModel => {
                out.untrained += 1;
                return;
            }
        };
        out.records.push(Record {
            group: hash(0, name),
            label: self.with_labels.then(|| super::label(name)),
            step,
            reward: trace.reward,
            length: trace.length,
            prompt_length: trace.prompt_length,
            identity: text_identity(trace.name),
            entropy: trace.entropy,
        });
    }

    fn trace<'a>(&self, trace: &'a [u8]) -> Result<Trace<'a>, String> {
        let [
            mut id,
            mut ok,
            mut errors,
            mut agent,
            mut rewards,
            mut nodes,
        ] = [None; 6];
        fields(trace, |key, value| {
            match key {
                b"id" => id = Some(value),
                b"ok" => ok = Some(value),
                b"errors" => errors = Some(value),
                b"agent" => agent = Some(value),
                b"rewards" => rewards = Some(value),
                b"nodes" => nodes = Some(value),
                _ => {}
            }
            Ok(())
        })?;
        let has_failed = match ok {
            Some(Json::Bool(ok)) => !ok,
            _ => matches!(errors, Some(Json::Array(errors)) if !is_empty(errors)),
        };
        let is_other_model = at(agent, &["trainable"])? == Some(Json::Bool(false));
        let Some(Json::Array(nodes)) = nodes else {
            return Err("`nodes`: expected a list".to_string());
        };
        let tokens = count_tokens(nodes)?;
        if is_other_model {
            return Ok(Trace::OfAnotherModel);
        }
        if has_failed || tokens.drawn == 0 {
            return Ok(Trace::Failed);
        }
        let name = match id {
            Some(Json::String(id)) => id,
            _ => nodes,
        };
        Ok(Trace::Trained(Trained {
            name,
            reward: self.sum(rewards)?,
            length: tokens.drawn,
            prompt_length: tokens.all.saturating_sub(tokens.drawn),
            entropy: tokens.entropy(),
        }))
    }

    /// Σ score · weight over the rewards that were computed, as `Trace.reward`; of the named ones
    /// by the given weights where there are names.
    fn sum(&self, rewards: Option<Json<'_>>) -> Result<f64, String> {
        let Some(Json::Object(rewards)) = rewards else {
            return Err("`rewards`: expected an object".to_string());
        };
        let mut sum = 0.0;
        fields(rewards, |key, value| {
            let chosen = self.rewards.iter().find(|term| term.name.as_bytes() == key);
            if !self.rewards.is_empty() && chosen.is_none() {
                return Ok(());
            }
            let (score, weight) = match value {
                Json::Null => return Ok(()),
                Json::Number(text) => (number(text), Some(1.0)),
                Json::Object(_) => (
                    number_at(value, "score")?,
                    Some(number_at(value, "weight")?.unwrap_or(1.0)),
                ),
                _ => (None, None),
            };
            let weight = chosen.map(|term| term.weight).or(weight);
            let (Some(score), Some(weight)) = (score, weight) else {
                return Err("`rewards`: expected numbers, or objects with `score`".to_string());
            };
            sum += score * weight;
            Ok(())
        })?;
        Ok(sum)
    }

    fn rollout(
        &self,
        line: &[u8],
        step_of_file: Option<i64>,
        out: &mut Parsed,
    ) -> Result<(), String> {
        let [mut example, mut env, mut reward, mut metrics] = [None; 4];
        let [mut usage, mut error, mut completion, mut prompt] = [None; 4];
        fields(line, |key, value| {
            match key {
                b"example_id" => example = Some(value),
                b"env_name" | b"task" => env = Some(value),
                b"reward" => reward = Some(value),
                b"metrics" => metrics = Some(value),
                b"token_usage" => usage = Some(value),
                b"error" => error = Some(value),
                b"completion" => completion = Some(value),
                b"prompt" => prompt = Some(value),
                _ => {}
            }
            Ok(())
        })?;
        if !matches!(error, None | Some(Json::Null)) {
            out.fail();
            return Ok(());
        }
        let example = example
            .and_then(bytes)
            .ok_or("`example_id`: expected a name")?;
        let reward = if self.rewards.is_empty() {
            match reward {
                Some(Json::Number(text)) => number(text),
                Some(Json::Null) => Some(f64::NAN),
                _ => None,
            }
            .ok_or("`reward`: expected a number")?
        } else {
            self.sum(metrics)?
        };
        let tokens = |name| match usage {
            Some(usage) => Ok(number_at(usage, name)?.map(|count| count.max(0.0) as u64)),
            None => Ok::<_, String>(None),
        };
        let (length, prompt_length) = match tokens("output_tokens")? {
            Some(length) => (length, tokens("input_tokens")?.unwrap_or(0)),
            None => (completion.map_or(0, size), prompt.map_or(0, size)),
        };
        let step = hash(0, &step_of_file.unwrap_or(i64::MIN).to_le_bytes());
        let env = hash(step, env.and_then(bytes).unwrap_or_default());
        out.records.push(Record {
            group: hash(env, example),
            label: self.with_labels.then(|| super::label(example)),
            step: step_of_file,
            reward,
            length,
            prompt_length,
            identity: text_identity(completion.and_then(bytes).unwrap_or_default()),
            entropy: f64::NAN,
        });
        Ok(())
    }
}

/// A trace, as far as it trains the policy.
enum Trace<'a> {
    Trained(Trained<'a>),
    /// It is not ok, or drew nothing.
    Failed,
    OfAnotherModel,
}

struct Trained<'a> {
    /// Its id, unique.
    name: &'a [u8],
    reward: f64,
    length: u64,
    prompt_length: u64,
    entropy: f64,
}

#[derive(Default)]
struct Tokens {
    all: u64,
    drawn: u64,
    num_log_probs: u64,
    log_probs: f64,
}

impl Tokens {
    /// The mean of −log p of the drawn tokens; NaN where some have no log-prob.
    fn entropy(&self) -> f64 {
        if self.num_log_probs < self.drawn {
            return f64::NAN;
        }
        -self.log_probs / self.drawn as f64
    }
}

fn count_tokens(nodes: &[u8]) -> Result<Tokens, String> {
    let mut tokens = Tokens::default();
    elements(nodes, |node| {
        let Json::Object(node) = node else {
            return Err("`nodes`: expected objects".to_string());
        };
        fields(node, |key, value| {
            let Json::Array(list) = value else {
                return Ok(());
            };
            match key {
                b"mask" => elements(list, |drawn| {
                    tokens.all += 1;
                    tokens.drawn += u64::from(drawn == Json::Bool(true));
                    Ok(())
                }),
                b"logprobs" => elements(list, |value| {
                    let Json::Number(text) = value else {
                        return Err("`logprobs`: expected numbers".to_string());
                    };
                    tokens.num_log_probs += 1;
                    tokens.log_probs += number(text).unwrap_or(f64::NAN);
                    Ok(())
                }),
                _ => Ok(()),
            }
        })
    })?;
    Ok(tokens)
}

fn is_empty(list: &[u8]) -> bool {
    list.iter()
        .filter(|byte| !byte.is_ascii_whitespace())
        .count()
        <= 2
}

fn text_at<'a>(value: Option<Json<'a>>, path: &[&str]) -> Result<Option<&'a [u8]>, String> {
    Ok(match at(value, path)? {
        Some(Json::String(text)) => Some(text),
        _ => None,
    })
}

fn number_at(value: Json<'_>, name: &str) -> Result<Option<f64>, String> {
    Ok(match at(Some(value), &[name])? {
        Some(Json::Number(text)) => number(text),
        _ => None,
    })
}
