"""The build backend: maturin's, with the features that the machine can build.

``QAE_CUDA``: ``1`` builds the CUDA kernels and fails without nvcc, ``0`` leaves them out; by default
they are built if there is an nvcc that is new enough. nvcc is the one that ``build.rs`` finds.
``QAE_EMULATOR=1`` adds the emulated kernels, for tests.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import maturin
from maturin import build_sdist, get_requires_for_build_sdist

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

Settings = Mapping[str, Any]

# As in build.rs, which says why.
_OLDEST_RELEASE = (12, 8)
_DEFAULT_NVCC = Path("/usr/local/cuda/bin/nvcc")


def find_nvcc(environ: Mapping[str, str], default: Path = _DEFAULT_NVCC) -> Path | None:
    """The nvcc that ``build.rs`` would run."""
    candidates = [Path(environ["NVCC"])] if "NVCC" in environ else []
    homes = [environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in environ]
    candidates += [Path(home, "bin", "nvcc") for home in homes]
    candidates += [Path(entry, "nvcc") for entry in environ.get("PATH", "").split(os.pathsep)]
    candidates.append(default)
    return next((path.resolve() for path in candidates if path.is_file()), None)


def release(nvcc: Path) -> tuple[int, int] | None:
    """The CUDA release of this nvcc; ``None`` where it does not say."""
    try:
        run = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"release (\d+)\.(\d+),", run.stdout)
    return None if found is None else (int(found[1]), int(found[2]))


def features(environ: Mapping[str, str], default_nvcc: Path = _DEFAULT_NVCC) -> list[str]:
    """The cargo features to build with; exits where the environment asks for what cannot be."""
    chosen = ["cuda"] if _builds_cuda(environ, default_nvcc) else []
    if _switch(environ, "QAE_EMULATOR"):
        chosen.append("emulator")
    return chosen


def _builds_cuda(environ: Mapping[str, str], default_nvcc: Path) -> bool:
    wanted = _switch(environ, "QAE_CUDA")
    if wanted is False:
        return False
    nvcc = find_nvcc(environ, default_nvcc)
    if nvcc is None:
        found = "none"
    else:
        version = release(nvcc)
        if version is not None and version >= _OLDEST_RELEASE:
            return True
        found = f"{nvcc} " + ("of no release" if version is None else "{}.{}".format(*version))
    oldest = "{}.{}".format(*_OLDEST_RELEASE)
    if wanted:
        sys.exit(f"QAE_CUDA=1: expected nvcc {oldest} or newer, found {found}")
    print(
        f"qae: building for the CPU alone (nvcc {oldest} or newer: {found})",
        file=sys.stderr,
    )
    return False


def _switch(environ: Mapping[str, str], name: str) -> bool | None:
    value = environ.get(name, "")
    if value not in ("", "0", "1"):
        sys.exit(f"{name}: expected 0 or 1, found {value!r}")
    return None if value == "" else value == "1"


def _with_features(config_settings: Settings | None) -> dict[str, Any]:
    arguments = list(maturin.get_maturin_pep517_args(config_settings))
    chosen = features(os.environ)
    if chosen:
        arguments += ["--features", ",".join(chosen)]
    return {**(config_settings or {}), "maturin.build-args": arguments}


def build_wheel(
    wheel_directory: str,
    config_settings: Settings | None = None,
    metadata_directory: str | None = None,
) -> str:
    return maturin.build_wheel(wheel_directory, _with_features(config_settings), metadata_directory)


def build_editable(
    wheel_directory: str,
    config_settings: Settings | None = None,
    metadata_directory: str | None = None,
) -> str:
    return maturin.build_editable(
        wheel_directory, _with_features(config_settings), metadata_directory
    )


def _checked(hook: Callable[..., Any]) -> Callable[..., Any]:
    """``hook`` where the environment asks for nothing that cannot be built."""

    def checked(*arguments: Any, **named: Any) -> Any:
        features(os.environ)
        return hook(*arguments, **named)

    return checked


get_requires_for_build_wheel = _checked(maturin.get_requires_for_build_wheel)
get_requires_for_build_editable = _checked(maturin.get_requires_for_build_editable)
prepare_metadata_for_build_wheel = maturin.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = maturin.prepare_metadata_for_build_editable
