//! Compiles the CUDA kernels when the feature `cuda` is on; does nothing otherwise.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    if let Err(message) = cuda::build() {
        eprintln!("error: {message}");
        std::process::exit(1);
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::env;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    /// Compute capabilities compiled to machine code: A100 (and, as the same major version, every
    /// Ampere and Ada GPU), H100 and H200, B200 and B300, RTX Blackwell. `QAE_CUDA_ARCHITECTURES`
    /// replaces the list. The last one is also kept as PTX, for GPUs that do not exist yet.
    const ARCHITECTURES: &[&str] = &["80", "90a", "100", "120"];

    const FLAGS: &[&str] = &["-O3", "-std=c++17"];

    /// The oldest release of nvcc that knows every one of `ARCHITECTURES`.
    const OLDEST_RELEASE: (u32, u32) = (12, 8);

    pub fn build() -> Result<(), String> {
        for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "QAE_CUDA_ARCHITECTURES"] {
            println!("cargo:rerun-if-env-changed={variable}");
        }
        // Cargo looks at every file below a directory.
        println!("cargo:rerun-if-changed=kernels");

        println!("cargo:rerun-if-env-changed=DOCS_RS");
        // docs.rs has no nvcc, and documentation links nothing.
        if env::var_os("DOCS_RS").is_some() {
            return Ok(());
        }

        let nvcc = find_nvcc()?;
        let version = release(&nvcc)?;
        let architectures = architectures()?;

        // Clippy links nothing, and cargo keeps its results apart from those of `cargo build`, so
        // the kernels would be compiled a second time for nothing.
        if env::var_os("CLIPPY_ARGS").is_none() {
            compile(&nvcc, &architectures);
            link_runtime(&nvcc);
        }
        println!(
            "cargo:rustc-env=QAE_CUDA_ARCHITECTURES={}",
            architectures.join(" ")
        );
        println!(
            "cargo:rustc-env=QAE_CUDA_VERSION={}.{}",
            version.0, version.1
        );
        Ok(())
    }

    fn compile(nvcc: &Path, architectures: &[String]) {
        // SAFETY: the build script has started no other thread.
        unsafe { env::set_var("NVCC", nvcc) }; // the only way to tell `cc` which nvcc to run
        let mut build = cc::Build::new();
        // Debug information would turn off optimization (-G), which makes kernels spill.
        build.cuda(true).cudart("static").debug(false).opt_level(3);
        build.file("kernels/all.cu").include("kernels");
        for flag in FLAGS.iter().copied() {
            build.flag(flag);
        }
        for architecture in architectures {
            build.flag(format!(
                "-gencode=arch=compute_{architecture},code=sm_{architecture}"
            ));
        }
        if let Some(newest) = architectures.last().filter(|name| is_portable(name)) {
            build.flag(format!(
                "-gencode=arch=compute_{newest},code=compute_{newest}"
            ));
        }
        build.flag(format!(
            "--threads={}",
            env::var("NUM_JOBS").as_deref().unwrap_or("1")
        ));
        build.compile("qae_kernels");
    }

    /// The nvcc of the environment, without links in its path: nvcc finds its headers from there.
    fn find_nvcc() -> Result<PathBuf, String> {
        let in_toolkit =
            |variable| env::var_os(variable).map(|home| Path::new(&home).join("bin/nvcc"));
        let on_path = env::var_os("PATH").unwrap_or_default();
        env::var_os("NVCC")
            .map(PathBuf::from)
            .into_iter()
            .chain(in_toolkit("CUDA_HOME"))
            .chain(in_toolkit("CUDA_PATH"))
            .chain(env::split_paths(&on_path).map(|directory| directory.join("nvcc")))
            .chain([PathBuf::from("/usr/local/cuda/bin/nvcc")])
            .find(|candidate| candidate.is_file())
            .and_then(|nvcc| nvcc.canonicalize().ok())
            .ok_or_else(|| {
                "the feature `cuda` needs nvcc, which is neither $NVCC, $CUDA_HOME/bin/nvcc, \
                 $CUDA_PATH/bin/nvcc, on PATH nor /usr/local/cuda/bin/nvcc; \
                 `eval \"$(scripts/cuda-toolchain.sh)\"` installs one from PyPI"
                    .to_owned()
            })
    }

    fn release(nvcc: &Path) -> Result<(u32, u32), String> {
        let unreadable = || format!("`{} --version` names no release", nvcc.display());
        let output = Command::new(nvcc)
            .arg("--version")
            .output()
            .map_err(|error| format!("cannot run {}: {error}", nvcc.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let (_, tail) = text.split_once("release ").ok_or_else(unreadable)?;
        let (name, _) = tail.split_once(',').ok_or_else(unreadable)?;
        let (major, minor) = name.split_once('.').ok_or_else(unreadable)?;
        let found = (
            major.parse().map_err(|_| unreadable())?,
            minor.parse().map_err(|_| unreadable())?,
        );
        if found < OLDEST_RELEASE {
            let (major, minor) = OLDEST_RELEASE;
            let nvcc = nvcc.display();
            return Err(format!(
                "{nvcc} is CUDA {name}; {major}.{minor} or newer is needed"
            ));
        }
        Ok(found)
    }

    fn architectures() -> Result<Vec<String>, String> {
        let Ok(list) = env::var("QAE_CUDA_ARCHITECTURES") else {
            return Ok(ARCHITECTURES.iter().map(|&name| name.to_owned()).collect());
        };
        let names: Vec<String> = list
            .split([' ', ',', ';'])
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        let is_valid = |name: &String| {
            let digits = name.strip_suffix(['a', 'f']).unwrap_or(name);
            !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
        };
        if names.is_empty() || !names.iter().all(is_valid) {
            return Err(format!(
                "QAE_CUDA_ARCHITECTURES is a list such as \"80 90a\", found \"{list}\""
            ));
        }
        Ok(names)
    }

    /// PTX of an architecture with a suffix runs on no later one.
    fn is_portable(architecture: &str) -> bool {
        architecture.bytes().all(|byte| byte.is_ascii_digit())
    }

    fn link_runtime(nvcc: &Path) {
        // `cc` searches targets/*/lib, which the toolkit of the PyPI wheels does not have.
        let toolkit = nvcc.parent().and_then(Path::parent).unwrap_or(nvcc);
        for library in ["lib", "lib64"].map(|name| toolkit.join(name)) {
            if library.is_dir() {
                println!("cargo:rustc-link-search=native={}", library.display());
            }
        }
        for library in ["dl", "rt", "pthread"] {
            println!("cargo:rustc-link-lib={library}");
        }
    }
}
