"""Build stand-ins for CUDA's and TensorRT's shared libraries, for the real onnxruntime-gpu without a GPU.

With them the wheel's CUDA and TensorRT providers load: they parse provider options and refuse wrong ones, partition and
optimize the graph, say which nodes would run where, and accept or refuse CUDA graphs. No kernel runs, so a session must
never be run. The TensorRT provider dies of a signal once its options are accepted.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

TOOLS = ("gcc", "g++", "nm", "objdump")
_HERE = Path(__file__).parent
_SPECIAL = {
    "cudaGetDeviceCount": "int cudaGetDeviceCount(int *n) { *n = 1; return 0; }",
    "cudaMemGetInfo": "int cudaMemGetInfo(unsigned long *a, unsigned long *b) { *a = *b = 1ul << 33; return 0; }",
    "cudaMalloc": "int cudaMalloc(void **p, unsigned long n) { *p = malloc(n); return 0; }",
    "cudaMallocHost": "int cudaMallocHost(void **p, unsigned long n) { *p = malloc(n); return 0; }",
    "cudaHostAlloc": "int cudaHostAlloc(void **p, unsigned long n, unsigned f) { *p = malloc(n); return 0; }",
    "getInferLibVersion": "int getInferLibVersion(void) { return 101600; }",
    "getPluginRegistry": "void *getPluginRegistry(void) { return &object; }",
}
# Functions whose symbols carry no version: the library that has them.
_UNVERSIONED = (
    (r"cu[A-Z]\w*$", "libcuda.so.1"),
    (r"cudnn\w+$", "libcudnn.so.9"),
    (r"(createInfer\w+|getInferLibVersion|getPluginRegistry)", "libnvinfer.so.10"),
    (r"createNvOnnx\w+", "libnvonnxparser.so.10"),
)


def missing_tool() -> str:
    """The first of `TOOLS` that is not installed; empty if all are."""
    return next((tool for tool in TOOLS if shutil.which(tool) is None), "")


def build_stubs(capi: Path, folder: Path) -> None:
    """Build a library for each that the providers in `onnxruntime/capi` need, with every function that they ask for."""
    symbols: dict[str, set[str]] = defaultdict(set)
    versioned: set[str] = set()
    for provider in sorted(capi.glob("libonnxruntime_providers_*.so")):
        for library in re.findall(r"NEEDED\s+(lib(?:cu|nv)\S+)", _output("objdump", "-p", str(provider))):
            symbols[library] |= set()  # needed, even if it gives no symbol
        for line in _output("nm", "-D", "--undefined-only", str(provider)).splitlines():
            name, _, version = line.split()[-1].partition("@")
            if version.startswith(("libcu", "libnv")):
                symbols[version].add(name)
                versioned.add(version)
            else:
                for library in (library for pattern, library in _UNVERSIONED if re.match(pattern, name)):
                    symbols[library].add(name)
    for library, names in symbols.items():
        _build(folder, library, names, is_versioned=library in versioned)


def _build(folder: Path, library: str, names: set[str], *, is_versioned: bool) -> None:
    functions = "\n".join(_SPECIAL.get(name, f"long {name}(void) {{ return 0; }}") for name in sorted(names))
    source = folder / f"{library}.c"
    source.write_text((_HERE / "stubs.c").read_text().replace("\nFUNCTIONS\n", f"\n{functions}\n"))
    command = ["gcc", "-shared", "-fPIC", "-w", "-o", str(folder / library), str(source), f"-Wl,-soname,{library}"]
    if is_versioned:
        versions = folder / f"{library}.map"
        versions.write_text(f"{library} {{ global: *; }};\n")
        command.append(f"-Wl,--version-script={versions}")
    subprocess.run(command, check=True)


def build_driver(folder: Path, kernel: str) -> None:
    """Build a `libcuda.so.1` that works on host memory, and runs this kernel at once.

    Args:
        folder: to write to.
        kernel: CUDA C++ of `resample`, compiled as C++.
    """
    source = folder / "driver.cpp"
    source.write_text((_HERE / "driver.cpp").read_text().replace("\nKERNEL\n", f"\n{kernel}\n"))
    library = "libcuda.so.1"
    command = [
        "g++",
        "-O1",
        "-shared",
        "-fPIC",
        "-w",
        "-o",
        str(folder / library),
        str(source),
        f"-Wl,-soname,{library}",
    ]
    subprocess.run([*command, "-ldl"], check=True)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
