//! Pictures are drawn whole, for data of every kind.

use crate::Files;
use crate::legible::assert_legible;
use crate::sample;
use qae::AutoKConfig;
use qae::analyze::plot::{Theme, write};
use qae::analyze::{Columns, Options, analyze};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

#[test]
fn svg_and_png_are_written_for_every_format() {
    let folder = TempDir::new().unwrap();
    for name in [
        "trl-addition.jsonl",
        "verl",
        "trl",
        "nemo_rl",
        "verifiers",
        "prime_rl-traces",
    ] {
        let analysis = analyze(&[sample(name)], &Options::default(), &()).unwrap();
        for theme in [Theme::Light, Theme::Dark] {
            let svg = folder.path().join("plot.svg");
            write(&analysis, &svg, theme).unwrap();
            let svg = fs::read_to_string(svg).unwrap();
            assert_legible(&svg);
            for text in [
                "hard groups",
                "advantage = 0",
                if analysis.report.rewards.binary {
                    "tokens saved"
                } else {
                    "two-regime gate"
                },
                analysis.report.format,
            ] {
                assert!(svg.contains(text), "{name}: {text}");
            }
            let by_step = analysis.report.by_step.len() > 1;
            assert_eq!(svg.contains("by step"), by_step, "{name}");
        }
        let png = folder.path().join("plot.PNG");
        write(&analysis, &png, Theme::Light).unwrap();
        let file = std::io::BufReader::new(fs::File::open(png).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height), (1920, 1000));
        // Not a blank page, and nothing drawn into the corner.
        assert!(
            pixels.iter().filter(|&&value| value < 128).count() > 10_000,
            "{name}"
        );
        assert_eq!(pixels[..3], [255; 3]);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

/// The commands are in docs/choosing-k.md.
#[test]
fn the_page_shows_what_is_drawn_now() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let column = |name: &str| Some(name.to_string());
    let replayed = Options {
        columns: Columns {
            group: column("uid"),
            rewards: vec!["score".parse().unwrap()],
            length: column("response_length"),
            ..Columns::default()
        },
        auto_k: Some(AutoKConfig::default()),
        ..Options::default()
    };
    let training = root.join("data/arithmetic-qae.parquet");
    for (name, rollouts, options) in [
        (
            "choosing-k",
            sample("trl-addition.jsonl"),
            Options::default(),
        ),
        ("auto-k-replay", training, replayed),
    ] {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("plot.svg");
        let analysis = analyze(&[rollouts], &options, &()).unwrap();
        for theme in [Theme::Light, Theme::Dark] {
            write(&analysis, &path, theme).unwrap();
            let drawn = fs::read_to_string(&path).unwrap();
            assert_legible(&drawn);
            let page = format!("docs/plots/{name}-{}.svg", theme.name());
            let committed = fs::read_to_string(root.join(&page)).unwrap();
            assert!(drawn == committed, "{page} is another picture");
        }
    }
}

#[test]
fn a_replay_of_any_length_can_be_drawn() {
    for (steps, is_drawn) in [(1, false), (2, true), (41, true), (500, true)] {
        let mut text = String::new();
        for step in 0..steps {
            let row = serde_json::json!({
                "input": "", "output": "", "score": step % 2, "step": step,
                "entropy": if step % 3 == 1 { None } else { Some(0.1 + f64::from(step)) },
            });
            writeln!(text, "{row}").unwrap();
        }
        let files = Files::new(&[("1.jsonl", text.as_bytes())]);
        let options = Options {
            auto_k: Some(AutoKConfig::default()),
            ..Options::default()
        };
        let analysis = analyze(&[files.0.path().to_path_buf()], &options, &()).unwrap();
        let path = files.0.path().join("plot.svg");
        write(&analysis, &path, Theme::Light).unwrap();
        let svg = fs::read_to_string(path).unwrap();
        assert_legible(&svg);
        assert_eq!(svg.contains("nats per token"), is_drawn, "{steps}");
        assert_eq!(svg.contains("K that automatic K sets"), is_drawn, "{steps}");
    }
}

/// The plot of rows with a reward, a group and a step each.
fn plot_of(rows: impl Iterator<Item = (f64, usize, usize)>) -> String {
    let mut text = String::new();
    for (score, group, step) in rows {
        let row = serde_json::json!({
            "input": "", "output": "", "score": score, "uid": group.to_string(), "step": step,
        });
        writeln!(text, "{row}").unwrap();
    }
    let files = Files::new(&[("1.jsonl", text.as_bytes())]);
    let options = Options {
        k: (1..20).map(|i| f64::from(i) / 20.0).collect(),
        ..Options::default()
    };
    let analysis = analyze(&[files.0.path().to_path_buf()], &options, &()).unwrap();
    let path = files.0.path().join("plot.svg");
    write(&analysis, &path, Theme::Dark).unwrap();
    let svg = fs::read_to_string(path).unwrap();
    assert_legible(&svg);
    svg
}

#[test]
fn letters_stay_apart_in_data_of_every_shape() {
    // Many steps with long numbers; neighbors are put together.
    let many = plot_of((0..1600).map(|i| (f64::from(i % 3 == 0), i / 8, 1_000_000 + i / 8)));
    assert!(many.contains("mean of 5 steps"));
    // One step, groups of one, rewards of every kind.
    assert!(
        plot_of((0..64).map(|i| (f64::from(i % 3 == 0), i / 8, 7))).contains("share of groups")
    );
    plot_of((0..64).map(|i| (f64::from(i % 3 == 0), i, 7)));
    let continuous = plot_of((0..64).map(|i| (i as f64 / 64.0, i / 8, i / 32)));
    assert!(continuous.contains("= 0 with two-regime gate"));
}

#[test]
fn other_names_and_places_are_refused() {
    let folder = TempDir::new().unwrap();
    let analysis = analyze(&[sample("verl")], &Options::default(), &()).unwrap();
    for (name, part) in [
        ("plot.jpg", "a name that ends in .svg or .png"),
        ("plot", "a name that ends in .svg or .png"),
        ("none/plot.svg", "expected a directory"),
    ] {
        let error = write(&analysis, &folder.path().join(name), Theme::Light).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
