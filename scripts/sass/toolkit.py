"""The tools of the CUDA toolkit, and the cubins that they compile or find."""

import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def fail(message):
    sys.exit(f"check-sass: {message}")


def tool(name):
    """A tool of the CUDA toolkit: beside $NVCC first, so that all tools are of one toolkit."""
    nvcc = os.environ.get("NVCC")
    beside = pathlib.Path(nvcc).resolve().parent / name if nvcc else None
    path = str(beside) if beside and beside.is_file() else shutil.which(name)
    if path is None:
        fail(f'{name} is not on PATH: run eval "$(scripts/cuda-toolchain.sh)" first')
    return path


def run(command, **options):
    result = subprocess.run(command, text=True, capture_output=True, check=False, **options)
    if result.returncode:
        fail(f"{' '.join(map(str, command))} failed:\n{result.stdout}{result.stderr}")
    return result.stdout + result.stderr


def lines(command):
    """The lines that a command prints, one by one: disassembly has a million of them."""
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE) as process:
        yield from process.stdout
    if process.returncode:
        fail(f"{' '.join(map(str, command))} failed")


def build_list(constant):
    """A list of strings of build.rs, the one place that says how the kernels are built."""
    text = (ROOT / "build.rs").read_text()
    match = re.search(rf"const {constant}: &\[&str\] = &\[(.*?)\];", text, re.DOTALL)
    return re.findall(r'"([^"]*)"', match[1])


def compile_cubins(architectures, directory):
    """Compiles kernels/all.cu per architecture; returns the cubins and the spills by kernel."""

    def compile_one(architecture):
        cubin = directory / f"all.sm_{architecture}.cubin"
        command = [tool("nvcc"), *build_list("FLAGS"), f"-arch=sm_{architecture}", "-cubin"]
        command += ["-Xptxas", "-v", "-I", ROOT / "kernels", "-o", cubin, ROOT / "kernels/all.cu"]
        return architecture, cubin, run(command)

    properties = re.compile(
        r"Function properties for (\S+)\s+.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    )
    spills = {}
    cubins = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for architecture, cubin, log in pool.map(compile_one, architectures):
            cubins.append((architecture, cubin))
            for symbol, stores, loads in properties.findall(log):
                spills[architecture, symbol] = int(stores) + int(loads)
    return cubins, spills


def extract_cubins(library, directory):
    """The cubins inside a library, object or executable, with their architectures."""
    if library.suffix == ".cubin":
        shutil.copy(library, directory)
    else:
        run([tool("cuobjdump"), "-xelf", "all", library.resolve()], cwd=directory)
    cubins = []
    for cubin in sorted(directory.glob("*.cubin")):
        match = re.search(r"\bsm_(\d+[af]?)\b", cubin.name.replace(".", " "))
        if match is None:
            fail(f"the name of {cubin.name} has no architecture (sm_90a, say)")
        cubins.append((match[1], cubin))
    return cubins
