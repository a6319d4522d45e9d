#!/usr/bin/env bash
# Everything a machine with a CUDA GPU can tell, in one command and under eight minutes:
#
#   benchmarks/gpu.sh [RESULTS]          RESULTS: a folder, benchmarks/results by default
#
# Builds with CUDA into a temporary folder, runs the CUDA tests, compares every operator with the CPU's (directly, under
# compute-sanitizer's memcheck and racecheck, and from captured graphs), runs the benchmarks, and prints tables. A step
# that fails is recorded and the others still run. Needs Python with torch, pybind11, scikit-build-core, ninja, pytest,
# hypothesis and pytest-benchmark, CMake and the CUDA toolkit; no network: what such a machine lacks may lie in a folder
# offline/ of the checkout (pip install --target offline hypothesis, with --python-version and --only-binary=:all: where
# the machine has another Python).
#
# What the compiler reports (nvcc 13.0, -O3; registers on sm_80 / sm_90; no spills and no stack frame on sm_75 to sm_120),
# and what a block takes for 17x64x64 maps, in KiB of shared memory, NHWC / NCHW. A block has 448 threads in NHWC, 128
# (float32) or 64 in NCHW; 512 in the mean of the losses; 256 in prepare.
#   kernel                    float32   float16   bfloat16   shared, float32   shared, 16-bit types
#   render, 16 bytes          51 / 53   37 / 39   37 / 39    9.5 / 1.3         10.5 / 2.3
#   render, single elements   44 / 43   44 / 44   44 / 44
#   mse, 16 bytes             60 / 67   67 / 70   67 / 72    9.5 / 2.0         13.9 / 2.3
#   mse, single elements      48 / 51   48 / 51   48 / 51
#   mean                      15 / 18                        0.1
#   decode, 16 bytes          63 / 70   64 / 54   64 / 70    13.8 / 4.0        27.6 / 4.0
#   decode, single elements   48 / 53   48 / 48   48 / 48
#   decode flip, 16 bytes     56 / 58   68 / 68   72 / 72    14.0 / 4.0        27.8 / 4.1
#   decode flip, single       50 / 52   50 / 52   50 / 52
#   prepare                   60 / 58   60 / 58   60 / 58    12                6
set -uo pipefail
results=${1:-$(dirname "$0")/results}
mkdir -p "$results/logs"
results=$(cd "$results" && pwd)
cd "$(dirname "$0")/.."
rm -f "$results"/{bars,benchmarks,check,graphs,steps}.json  # of an earlier run
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python=${PYTHON:-python3}
export PYTHONPATH="$scratch/site:$PWD/offline${PYTHONPATH:+:$PYTHONPATH}" HPE_FAST_STRICT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
: >"$scratch/steps"

# step NAME SECONDS COMMAND...: runs the command under a limit; keeps its output, exit status and duration.
step() {
  local name=$1 limit=$2 start=$SECONDS status=0
  shift 2
  echo "== $name"
  timeout --signal=INT --kill-after=10 "$limit" "$@" >"$results/logs/$name.log" 2>&1 || status=$?
  tail -n 3 "$results/logs/$name.log"
  printf '%s\t%s\t%s\n' "$name" "$status" "$((SECONDS - start))" >>"$scratch/steps"
}

# Only our kernels are instrumented; without torch's cache each tensor has its own bounds.
sanitize() {
  step "$1" 55 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    compute-sanitizer --tool "$1" --kernel-name kernel_substring=hpe --error-exitcode 9 \
    "$python" -m benchmarks.check_cuda --shape 2,17,64,64 3,17,13,11
}

nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap,clocks.max.sm --format=csv | tee "$results/gpu.csv"
"$python" -c "import torch; torch.cuda.init()" || exit 1  # without a GPU every test would be skipped, and look green
step build 170 env HPE_FAST_CUDA=ON "$python" -m pip install --no-build-isolation --no-deps --no-index --upgrade \
  --target "$scratch/site" .
ls "$scratch"/site/_hpe_fast*.so || { cat "$results/logs/build.log"; exit 1; }
rm -rf "$scratch/site/hpe_fast"  # the checkout's own is used: the same code, and it knows benchmarks/ and tests/
# Of the other tests with a GPU in them, those that can be imported here: the rest of the package may be absent.
others=$("$python" -c "import cv2, nvidia.dali, safetensors, tyro" 2>/dev/null && ls tests/test_*.py | grep -v test_ops_)
step tests 100 "$python" -m pytest tests/test_ops_*.py $others -q -m "cuda and not slow" -rs -p no:cacheprovider
step check 30 "$python" -m benchmarks.check_cuda --json "$results/check.json"
step graphs 30 "$python" -m benchmarks.check_cuda --graphs --json "$results/graphs.json"
sanitize memcheck
sanitize racecheck
step benchmarks 150 "$python" -m pytest benchmarks/test_bench_ops.py -q --benchmark-only --budget=115 \
  -p no:cacheprovider --benchmark-json="$results/benchmarks.json"

# Missed bars are a result, not a failure.
step bars 60 bash -c '"$0" -m benchmarks.ops_bars --device cuda --seconds 0.5 --json "$1" || [ $? -eq 1 ]' "$python" \
  "$results/bars.json"
cat "$results/logs/bars.log"

[ -s "$results/benchmarks.json" ] && "$python" -m benchmarks.report "$results/benchmarks.json"
"$python" - "$scratch/steps" "$results" <<'PYTHON'
import json
import sys
from pathlib import Path

rows = [line.split("\t") for line in Path(sys.argv[1]).read_text().splitlines()]
steps = {name: {"status": int(status), "seconds": int(seconds)} for name, status, seconds in rows}
(Path(sys.argv[2]) / "steps.json").write_text(json.dumps(steps, indent=1))
for name, step in steps.items():
    outcome = "ok" if step["status"] == 0 else "out of time" if step["status"] in (124, 137) else "FAILED"
    print(f"{name:<14}{outcome:<14}{step['seconds']:>4} s")
sys.exit(any(step["status"] for step in steps.values()))
PYTHON
