"""`mineral-bench gpu` from a checkout, on a machine where nothing of this project is installed.

python benchmarks/gpu.py --wheels DIR --out DIR
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / room) for room in ("runtime", "train", "export", "benchmarks")]

if __name__ == "__main__":
    from mineral_bench.cli.gpu import gpu

    gpu(prog_name="python benchmarks/gpu.py")
