//! `qae info`: what this build and this machine have.

/// What is missing for a GPU to be used.
pub(super) fn no_cuda() -> &'static str {
    if cfg!(feature = "cuda") {
        "this build has the kernels but not yet the interface that launches them"
    } else {
        "built without the `cuda` feature"
    }
}

/// The driver and the devices, or why there are none: one line each.
fn devices() -> Vec<String> {
    vec![format!("none: {}", no_cuda())]
}

pub(super) fn info() -> String {
    let kernels = match (
        option_env!("QAE_CUDA_ARCHITECTURES"),
        option_env!("QAE_CUDA_VERSION"),
    ) {
        (Some(architectures), Some(version)) => {
            format!("compiled for {architectures} with CUDA {version}")
        }
        _ => "not compiled".to_string(),
    };
    let mut lines = vec![
        ("qae", env!("CARGO_PKG_VERSION").to_string()),
        ("kernels", kernels),
    ];
    lines.extend(devices().into_iter().map(|device| ("device", device)));
    lines.push((
        "GPU record",
        "none yet: no kernel variant has been verified or timed on a GPU".to_string(),
    ));
    let line = |(label, text): (&str, String)| format!("{label:<12}{text}\n");
    lines.into_iter().map(line).collect()
}
