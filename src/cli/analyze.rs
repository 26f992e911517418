//! `qae analyze`: arguments to options, the report to text.

mod args;
mod progress;
mod rows;
mod table;

pub use args::AnalyzeArgs;

use super::threads::with_threads;
use crate::analyze::{Analysis, analyze as run, hide_caught_panics, plot};
use crate::error::{Error, Result};
use args::AnalyzeFormat;
use clap::ValueEnum;
use progress::Bar;

/// Reads the rollouts, writes the plot if there is to be one, and returns the report.
///
/// # Errors
/// Whatever is wrong with the files, the flags or the place for the plot.
pub fn analyze(args: &AnalyzeArgs) -> Result<String> {
    hide_caught_panics();
    check_format(args)?;
    let options = args.options();
    let text = with_threads(|| {
        // Before the files are read, which may take long, and again: a file that came since then
        // must not be lost.
        check_plot(args)?;
        let analysis = run(&args.paths, &options, &Bar::new())?;
        if let Some(path) = &args.plot {
            check_plot(args)?;
            plot::write(&analysis, path, args.plot_theme.into())?;
        }
        print(&analysis, args)
    });
    text.map_err(name_flag)
}

fn print(analysis: &Analysis, args: &AnalyzeArgs) -> Result<String> {
    let report = &analysis.report;
    match args.format {
        AnalyzeFormat::Table => {
            let mut text = table::table(report, args.by_step);
            if let Some(path) = &args.plot {
                text += &format!(
                    "\nplot: {}\n",
                    super::printable::printable(&path.display().to_string())
                );
            }
            Ok(text)
        }
        AnalyzeFormat::Csv => rows::csv(report),
        AnalyzeFormat::Json => {
            let json = serde_json::to_string_pretty(report);
            json.map_err(|error| Error::invalid("--format json", "a report", error))
                .map(|json| json + "\n")
        }
    }
}

/// Flags that only one format has are not ignored beside another one.
fn check_format(args: &AnalyzeArgs) -> Result<()> {
    for (flag, is_given, format, name) in [
        ("--by-step", args.by_step, AnalyzeFormat::Table, "table"),
        ("--by-group", args.by_group, AnalyzeFormat::Json, "json"),
    ] {
        if is_given && args.format != format {
            let found = args.format.to_possible_value();
            let found = found.as_ref().map_or("another", |value| value.get_name());
            let expected = format!("--format {name}, which it is for");
            return Err(Error::invalid(flag, expected, format!("--format {found}")));
        }
    }
    Ok(())
}

fn check_plot(args: &AnalyzeArgs) -> Result<()> {
    let plot = args.plot.as_deref();
    plot.map_or(Ok(()), |plot| plot::check(plot, &args.paths))
}

/// Options are named as in the library; the user has flags.
fn name_flag(error: Error) -> Error {
    match error {
        Error::Invalid {
            field,
            mut expected,
            found,
        } => {
            let flag = match field.as_str() {
                "k" => "--k",
                "success_threshold" => "--success-threshold",
                "group_size" => "--group-size",
                "plot" => "--plot",
                "auto_k" => "--simulate-auto-k",
                "auto_k.initial_k" => "--initial-k",
                "auto_k.gain" => "--gain",
                "auto_k.min_k" => {
                    expected = expected.replace("max_k", "--max-k");
                    "--min-k"
                }
                "auto_k.max_k" => "--max-k",
                "auto_k.target.initial_share" => "--target-share",
                "auto_k.target.nats" => "--target-entropy",
                field => field,
            };
            Error::invalid(flag, expected, found)
        }
        error => error,
    }
}
