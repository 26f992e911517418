//! The report as text.

mod auto_k;

use crate::analyze::{ByStep, GroupSize, Report, Signs, Successes, plural, usual_size};
use crate::cli::printable::{exact, fixed, printable};

/// Columns of a terminal.
const WIDTH: usize = 100;
/// Of the labels on the left.
const INDENT: usize = 13;
/// Steps that are shown; JSON and CSV have all.
const MAX_STEPS: usize = 16;
/// K whose active share is shown at each step.
const MAX_STEP_K: usize = 9;

pub(super) fn table(report: &Report, with_each_step: bool) -> String {
    let mut text = String::new();
    for (label, content) in [
        ("data", data(report)),
        ("groups", groups(report)),
        ("rewards", rewards(report)),
        ("length", length(report)),
        ("successes", successes(&report.success_histogram)),
    ] {
        text += &paragraph(label, &content);
    }
    if let Some(name) = &report.columns.entropy {
        text += &paragraph("entropy", &entropy(name, report));
    }
    text += "\n";
    text += &methods(report);
    if !report.rewards.binary {
        text += &gated(report);
    }
    if report.by_step.len() > 1 {
        text += "\n";
        text += &steps(report);
    }
    if let Some(replay) = &report.auto_k {
        text += &auto_k::auto_k(report, replay, with_each_step);
    }
    if with_each_step {
        report
            .by_step
            .iter()
            .for_each(|step| text += &whole_step(step));
    }
    text += "\n";
    for warning in &report.warnings {
        text += &paragraph(warning.level, &warning.message);
    }
    text += &paragraph("recommended", &report.recommendation.text);
    text + &paragraph("rests on", &report.recommendation.rests_on)
}

fn data(report: &Report) -> String {
    let steps: Vec<_> = report.by_step.iter().filter_map(|step| step.step).collect();
    let steps = match (steps.first(), steps.last()) {
        (Some(first), Some(last)) if first != last => {
            format!("; {} steps, {first} to {last}", steps.len())
        }
        (Some(first), _) => format!("; step {first}"),
        _ => String::new(),
    };
    let files = plural(report.files as u64, "file");
    format!("{}, {files}, {}{steps}", report.format, bytes(report.bytes))
}

fn groups(report: &Report) -> String {
    let equal = report.zero_variance_groups;
    format!(
        "{} {}, by {}; {}; {} ({}) with all rewards equal",
        report.groups,
        sizes(&report.group_sizes),
        report.columns.grouped_by,
        plural(report.responses, "response"),
        plural(equal, "group"),
        percent(equal as f64 / report.groups.max(1) as f64).trim_start(),
    )
}

fn sizes(sizes: &[GroupSize]) -> String {
    match sizes {
        [only] => format!("of {}", only.size),
        [first, .., last] => {
            let usual = usual_size(sizes).map_or(String::new(), |size| {
                format!(", {} of them of {}", size.groups, size.size)
            });
            format!("of {} to {}{usual}", first.size, last.size)
        }
        [] => String::new(),
    }
}

fn rewards(report: &Report) -> String {
    let rewards = &report.rewards;
    let range = match (rewards.min, rewards.max) {
        (Some(min), Some(max)) if min == max => format!("always {}", exact(min.into())),
        (Some(min), Some(max)) => {
            let word = if rewards.binary { "or" } else { "to" };
            format!("{} {word} {}", exact(min.into()), exact(max.into()))
        }
        _ => "none is finite".to_string(),
    };
    let mean = rewards
        .mean
        .map_or(String::new(), |mean| format!(", mean {}", fixed(mean, 4)));
    let success = rewards.success_share.map_or(String::new(), |share| {
        let threshold = exact(report.success_threshold);
        format!(
            "; {} succeed (above {threshold})",
            percent(share).trim_start()
        )
    });
    format!("{}: {range}{mean}{success}", report.columns.reward)
}

fn length(report: &Report) -> String {
    let Some(name) = &report.columns.length else {
        return "none: responses count the same".to_string();
    };
    let mean = report.total_length as f64 / report.responses.max(1) as f64;
    let prompt = match &report.columns.prompt_length {
        Some(prompt) if prompt != name => format!("; of prompts {prompt}"),
        _ => String::new(),
    };
    format!(
        "{name}: {} in all, {} a response{prompt}",
        report.total_length,
        fixed(mean, 1)
    )
}

fn entropy(name: &str, report: &Report) -> String {
    let of_steps = report.by_step.iter().filter_map(|step| step.entropy);
    let of_steps: Vec<_> = of_steps.collect();
    let bounds = of_steps.iter().copied().reduce(f64::min);
    let bounds = bounds.zip(of_steps.iter().copied().reduce(f64::max));
    match bounds {
        Some((min, max)) => format!(
            "{name}: {} to {} nats at {} of {}",
            fixed(min, 4),
            fixed(max, 4),
            of_steps.len(),
            plural(report.by_step.len() as u64, "step"),
        ),
        None if report.steps_left_out > 0 => name.to_string(),
        None => format!("{name}: none is finite"),
    }
}

/// Of groups of one size by number, of others by tenths.
fn successes(histogram: &[Successes]) -> String {
    let uniform = histogram
        .windows(2)
        .all(|pair| pair[0].size == pair[1].size);
    if uniform && histogram.len() <= 33 {
        let size = histogram.first().map_or(0, |entry| entry.size);
        let entries = histogram.iter();
        let entries = entries.map(|entry| format!("{}: {}", entry.successes, entry.groups));
        return format!(
            "of {size}: groups  {}",
            entries.collect::<Vec<_>>().join(" · ")
        );
    }
    let mut tenths = [0; 11];
    for entry in histogram.iter().filter(|entry| entry.size > 0) {
        tenths[(10 * entry.successes / entry.size) as usize] += entry.groups;
    }
    let entries = tenths.iter().enumerate().filter(|(_, groups)| **groups > 0);
    let entries = entries.map(|(tenth, groups)| match tenth {
        10 => format!("100 %: {groups}"),
        tenth => format!("{} to {} %: {groups}", 10 * tenth, 10 * tenth + 10),
    });
    let entries: Vec<_> = entries.collect();
    format!("share: groups  {}", entries.join(" · "))
}

/// Above the figures of the K.
const HEADER: [&str; 11] = [
    "K", "hard", "easy", "positive", "zero", "negative", "tokens", "update", "mean |A|", "flips",
    "same as",
];

fn header(names: &[&str]) -> String {
    let widths = [6, 9, 9, 9, 9, 9, 9, 9, 8, 7, 8];
    let cells = names.iter().zip(widths);
    let cells: Vec<_> = cells
        .map(|(name, width)| format!("{name:>width$}"))
        .collect();
    cells.join(" ") + "\n"
}

fn methods(report: &Report) -> String {
    let interpolation = report.by_k.first().map_or("", |by_k| by_k.interpolation);
    let mut text = format!(
        "advantages with the K-quantile ({interpolation}) as baseline; saved: what has advantage 0\n{}",
        header(&HEADER),
    );
    text += &format!(
        "{:>6} {:>9} {:>9} {}\n",
        "mean",
        "-",
        "-",
        signs(&report.mean_baseline)
    );
    for by_k in &report.by_k {
        let same: Vec<_> = by_k.same_method_as.iter().map(|&k| exact(k)).collect();
        let flips = by_k
            .flips_from_previous
            .map_or("-".to_string(), |flips| flips.to_string());
        let line = format!(
            "{:>6} {} {} {} {flips:>7}  {}",
            exact(by_k.k),
            percent(by_k.hard_share),
            percent(by_k.easy_share),
            signs(&by_k.signs),
            same.join(" "),
        );
        text += line.trim_end();
        text += "\n";
    }
    text
}

fn gated(report: &Report) -> String {
    let mut text = format!(
        "\nwith the two-regime gate, which extends the rule to rewards that are not binary\n\
         {:>6} {:>19} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8}\n",
        "K", "", "positive", "zero", "negative", "tokens", "update", "mean |A|",
    );
    for by_k in &report.by_k {
        text += &format!(
            "{:>6} {:>19} {}\n",
            exact(by_k.k),
            "",
            signs(&by_k.two_regime)
        );
    }
    text
}

fn signs(signs: &Signs) -> String {
    format!(
        "{} {} {} {} {} {:>8}",
        percent(signs.positive_share),
        percent(signs.zero_share),
        percent(signs.negative_share),
        percent(signs.tokens_saved_share),
        percent(signs.update_saved_share),
        fixed(signs.mean_abs_advantage, 4),
    )
}

fn steps(report: &Report) -> String {
    let k: Vec<_> = report
        .by_k
        .iter()
        .take(MAX_STEP_K)
        .map(|by_k| by_k.k)
        .collect();
    let has_entropy = report.by_step.iter().any(|step| step.entropy.is_some());
    let mut text = "responses with an advantage, by step\n".to_string();
    text += &format!(
        "{:>8} {:>9} {:>7} {:>9} {:>8}",
        "step", "responses", "groups", "reward", "success"
    );
    if has_entropy {
        text += &format!(" {:>8}", "entropy");
    }
    for &k in &k {
        text += &format!(" {:>7}", exact(k));
    }
    text += "\n";
    let shown = shown_steps(report.by_step.len());
    for &i in &shown {
        text += &step(&report.by_step[i], k.len(), has_entropy);
    }
    let num_left_out = report.by_step.len() - shown.len();
    if num_left_out > 0 {
        text += &format!("{num_left_out} more steps in --format csv and json\n");
    }
    text
}

/// The same as over all steps.
fn whole_step(step: &ByStep) -> String {
    let name = step
        .step
        .map_or("without a number".to_string(), |step| step.to_string());
    let groups = format!(
        "{} {}; {}",
        step.groups,
        sizes(&step.group_sizes),
        plural(step.responses, "response"),
    );
    let mut text = format!("\nstep {name}\n");
    text += &paragraph("groups", &groups);
    text += &paragraph("successes", &successes(&step.success_histogram));
    text += &header(&HEADER[..10]);
    for by_k in &step.by_k {
        let share = |groups: u64| percent(groups as f64 / step.groups.max(1) as f64);
        let flips = by_k
            .flips_from_previous
            .map_or("-".to_string(), |flips| flips.to_string());
        text += &format!(
            "{:>6} {} {} {} {flips:>7}\n",
            exact(by_k.k),
            share(by_k.hard_groups),
            share(by_k.easy_groups),
            signs(&by_k.signs),
        );
    }
    text
}

/// First, last, and evenly between.
fn shown_steps(num_steps: usize) -> Vec<usize> {
    if num_steps <= MAX_STEPS {
        return (0..num_steps).collect();
    }
    let last = num_steps - 1;
    (0..MAX_STEPS).map(|i| i * last / (MAX_STEPS - 1)).collect()
}

fn step(step: &ByStep, num_k: usize, has_entropy: bool) -> String {
    let mut text = format!(
        "{:>8} {:>9} {:>7} {:>9} {}",
        step.step.map_or("-".to_string(), |step| step.to_string()),
        step.responses,
        step.groups,
        step.mean_reward
            .map_or("-".to_string(), |reward| fixed(reward, 4)),
        step.success_share
            .map_or(format!("{:>8}", "-"), |share| format!(
                "{:>6.1} %",
                100.0 * share
            )),
    );
    if has_entropy {
        let entropy = step
            .entropy
            .map_or("-".to_string(), |entropy| fixed(entropy, 4));
        text += &format!(" {entropy:>8}");
    }
    for by_k in step.by_k.iter().take(num_k) {
        text += &format!(" {:>5.1} %", 100.0 * (1.0 - by_k.signs.zero_share));
    }
    text + "\n"
}

/// Nine columns.
fn percent(share: f64) -> String {
    format!("{:>7.2} %", 100.0 * share)
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    let mut value = count as f64 / 1e3;
    let mut unit = 0;
    while value >= 1e3 && unit + 1 < UNITS.len() {
        value /= 1e3;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// The label, and the words beside it in as many lines as they take.
fn paragraph(label: &str, content: &str) -> String {
    let mut text = String::new();
    let mut line = format!("{label:<INDENT$}");
    let mut is_empty = true;
    for word in printable(content).split(' ') {
        let is_full = line.chars().count() + word.chars().count() + 1 > WIDTH;
        if is_full && !is_empty {
            text += line.trim_end();
            text += "\n";
            line = " ".repeat(INDENT);
        } else if !is_empty {
            line += " ";
        }
        line += word;
        is_empty = false;
    }
    text + line.trim_end() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_wrapped_and_stay_whole() {
        let text = paragraph("note", &"seven77 ".repeat(40));
        assert!(
            text.lines().all(|line| line.chars().count() <= WIDTH),
            "{text}"
        );
        assert_eq!(text.matches("seven77").count(), 40);
        let long = "x".repeat(300);
        assert_eq!(
            paragraph("note", &long),
            format!("{:<INDENT$}{long}\n", "note")
        );
    }

    #[test]
    fn first_and_last_steps_are_shown() {
        assert_eq!(shown_steps(3), [0, 1, 2]);
        let shown = shown_steps(1000);
        assert_eq!((shown.len(), shown[0], shown[15]), (16, 0, 999));
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(bytes(360_162), "360.2 kB");
        assert_eq!(bytes(2_000_000_000_000_000), "2000.0 TB");
    }
}
