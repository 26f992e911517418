"""What the build backend chooses to build. Nothing is built here."""

from __future__ import annotations

import importlib.util
import stat
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("maturin")


@pytest.fixture(scope="module")
def backend() -> ModuleType:
    path = Path(__file__).parents[1] / "backend.py"
    spec = importlib.util.spec_from_file_location("qae_backend", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_nvcc(directory: Path, release: str) -> Path:
    """An executable that answers ``--version`` as nvcc does."""
    directory.mkdir(parents=True, exist_ok=True)
    nvcc = directory / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.99'\n")
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IXUSR)
    return nvcc


def chosen(backend: ModuleType, tmp_path: Path, **environ: str) -> list[str]:
    return backend.features(environ, tmp_path / "no" / "nvcc")


def test_without_nvcc_only_the_cpu_is_built(backend: ModuleType, tmp_path: Path) -> None:
    assert chosen(backend, tmp_path, PATH=str(tmp_path)) == []


def test_nvcc_brings_the_kernels(backend: ModuleType, tmp_path: Path) -> None:
    make_nvcc(tmp_path / "bin", "12.8")
    assert chosen(backend, tmp_path, PATH=str(tmp_path / "bin")) == ["cuda"]
    assert chosen(backend, tmp_path, CUDA_HOME=str(tmp_path)) == ["cuda"]
    assert chosen(backend, tmp_path, CUDA_PATH=str(tmp_path)) == ["cuda"]
    assert chosen(backend, tmp_path, NVCC=str(tmp_path / "bin" / "nvcc")) == ["cuda"]
    default = backend.features({}, tmp_path / "bin" / "nvcc")
    assert default == ["cuda"]


@pytest.mark.parametrize(("release", "is_enough"), [("11.9", 0), ("12.7", 0), ("13.0", 1)])
def test_an_old_nvcc_does_not(
    backend: ModuleType, tmp_path: Path, release: str, is_enough: int
) -> None:
    nvcc = make_nvcc(tmp_path, release)
    assert chosen(backend, tmp_path, NVCC=str(nvcc)) == ["cuda"] * is_enough


def test_the_first_nvcc_counts_as_in_build_rs(backend: ModuleType, tmp_path: Path) -> None:
    old = make_nvcc(tmp_path / "old" / "bin", "12.0")
    new = make_nvcc(tmp_path / "new" / "bin", "13.0")
    on_path = str(new.parent)
    assert chosen(backend, tmp_path, CUDA_HOME=str(old.parents[1]), PATH=on_path) == []
    assert chosen(backend, tmp_path, NVCC=str(new), CUDA_HOME=str(old.parents[1])) == ["cuda"]


def test_links_are_followed(backend: ModuleType, tmp_path: Path) -> None:
    nvcc = make_nvcc(tmp_path / "real", "13.0")
    link = tmp_path / "nvcc"
    link.symlink_to(nvcc)
    assert backend.find_nvcc({"NVCC": str(link)}) == nvcc.resolve()


def test_demanded_kernels_need_nvcc(backend: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^QAE_CUDA=1: expected nvcc 12\.8 or newer, found none$"):
        chosen(backend, tmp_path, QAE_CUDA="1")
    nvcc = make_nvcc(tmp_path, "12.7")
    with pytest.raises(SystemExit, match=r"found .*nvcc 12\.7$"):
        chosen(backend, tmp_path, QAE_CUDA="1", NVCC=str(nvcc))
    broken = tmp_path / "broken"
    broken.write_text("")
    with pytest.raises(SystemExit, match="of no release$"):
        chosen(backend, tmp_path, QAE_CUDA="1", NVCC=str(broken))
    nvcc = make_nvcc(tmp_path, "12.8")
    assert chosen(backend, tmp_path, QAE_CUDA="1", NVCC=str(nvcc)) == ["cuda"]


def test_kernels_can_be_left_out(backend: ModuleType, tmp_path: Path) -> None:
    nvcc = make_nvcc(tmp_path, "13.0")
    assert chosen(backend, tmp_path, QAE_CUDA="0", NVCC=str(nvcc)) == []


def test_the_emulator_is_asked_for(backend: ModuleType, tmp_path: Path) -> None:
    nvcc = str(make_nvcc(tmp_path, "13.0"))
    assert chosen(backend, tmp_path, QAE_EMULATOR="1") == ["emulator"]
    assert chosen(backend, tmp_path, QAE_EMULATOR="1", NVCC=nvcc) == [
        "cuda",
        "emulator",
    ]
    assert chosen(backend, tmp_path, QAE_EMULATOR="0") == []


@pytest.mark.parametrize("name", ["QAE_CUDA", "QAE_EMULATOR"])
def test_other_values_are_refused(backend: ModuleType, tmp_path: Path, name: str) -> None:
    with pytest.raises(SystemExit, match=f"^{name}: expected 0 or 1, found 'yes'$"):
        chosen(backend, tmp_path, **{name: "yes"})


def test_settings_of_the_caller_are_kept(
    backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QAE_CUDA", "0")
    monkeypatch.setenv("QAE_EMULATOR", "1")
    monkeypatch.setenv("MATURIN_PEP517_ARGS", "--locked")
    settings = backend._with_features({"other": 1})
    assert settings == {
        "other": 1,
        "maturin.build-args": ["--locked", "--features", "emulator"],
    }
    settings = backend._with_features({"build-args": "--offline"})
    assert settings["maturin.build-args"] == ["--offline", "--features", "emulator"]
