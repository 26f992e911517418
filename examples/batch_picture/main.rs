//! What quantile advantages do to a batch that TRL generated and scored: a picture of it beside the
//! mean baseline, with this crate's own advantages.
//!
//! ```text
//! cargo run --release --example batch_picture -- --out docs/plots
//! ```

mod batch;
mod picture;
#[cfg(test)]
mod tests;

use batch::Batch;
use clap::Parser;
use qae::plot::{Theme, write};
use std::path::{Path, PathBuf};

/// The batch.
const CASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/trl-addition.safetensors");

/// Draws the advantages of a batch with the mean and with the quantile as baseline.
#[derive(Parser)]
struct Arguments {
    /// Folder of the pictures, for light and dark pages.
    #[arg(long, default_value = "target/batch-picture")]
    out: PathBuf,
    /// As PNG too.
    #[arg(long)]
    png: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let batch = Batch::read(Path::new(CASE))?;
    std::fs::create_dir_all(&arguments.out)
        .map_err(|error| format!("{}: {error}", arguments.out.display()))?;
    for theme in Theme::ALL {
        for extension in ["svg", "png"] {
            if extension == "svg" || arguments.png {
                let name = format!("batch-{}.{extension}", theme.name());
                let path = arguments.out.join(name);
                write(&batch, &path, theme)?;
                println!("{}", path.display());
            }
        }
    }
    Ok(())
}
