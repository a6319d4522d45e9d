"""``python -m hpe_fast.info``: what is installed and in use here, what is missing, and how to get it."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import hpe_fast

#: What the kernels and torch's bfloat16 can make use of.
CPU_FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_bf16", "amx_bf16")
DALI_PACKAGES = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")

Report = dict[str, str]


def _torch() -> ModuleType | None:
    try:
        import torch
    except ImportError:
        return None
    return torch


def dali_version() -> str | None:
    """Version and package of NVIDIA DALI, without importing it."""
    for package in DALI_PACKAGES:
        try:
            return f"{metadata.version(package)} ({package})"
        except metadata.PackageNotFoundError:
            continue
    return None


def nvidia_driver() -> str | None:
    """Version of the kernel driver, as it says itself."""
    try:
        words = NVIDIA_DRIVER.read_text().partition("Kernel Module")[2].split()
    except OSError:
        return None
    return next((word for word in words if word[:1].isdigit()), None)


def _gpus(torch: ModuleType) -> str:
    if not torch.cuda.is_available():
        return "none that torch can use"
    properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{p.name} (sm_{p.major}{p.minor}, {p.total_memory / 2**30:.0f} GiB)" for p in properties)


def _kernel_rows(info: dict[str, object], threads: int) -> Report:
    cpu = f"{info['simd']}, {threads} threads" if info["cpu_kernels"] else "none"
    cuda = f"{info['cuda_architectures']} (toolkit {info['cuda_version']})" if info["cuda_kernels"] else "none"
    return {"CPU kernels": cpu, "CUDA kernels": cuda, "backend": str(info["backend"])}


def _kernel_problems(info: dict[str, object], has_gpu: bool) -> list[str]:
    from hpe_fast.ops.native import CUDA_REMEDY

    problems = [str(info["problem"])] if info["problem"] else []
    if info["backend"] == "torch":
        problems.append("HPE_FAST_BACKEND=torch: every operator runs its PyTorch twin; unset it to use the kernels")
    if has_gpu and not info["cuda_kernels"]:
        problems.append(f"a GPU, but no CUDA kernels: {CUDA_REMEDY}")
    if info["cuda_kernels"] and info["cuda_problem"]:
        problems.append(str(info["cuda_problem"]))
    return problems


def report() -> tuple[Report, list[str]]:
    """What there is, by name, and what is missing, each with its remedy. Never raises for something missing.

    Example:
        >>> rows, missing = report()
        >>> list(rows)[:3]
        ['hpe_fast', 'Python', 'torch']
    """
    torch = _torch()
    driver, dali = nvidia_driver(), dali_version()
    rows = {
        "hpe_fast": f"{hpe_fast.__version__} ({Path(hpe_fast.__file__).parent})",
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "torch": "missing" if torch is None else f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})",
        "DALI": dali or "missing",
        "NVIDIA driver": driver or "none",
    }
    missing = [] if dali else [f"DALI, which loads pictures: run `pip install {DALI_PACKAGES[0]}` (Linux)"]
    if torch is None:
        return rows, [*missing, "torch, without which nothing runs: run `pip install torch`"]
    from hpe_fast.device import cpu_flags
    from hpe_fast.ops import build_info

    try:
        info = build_info()
    except ValueError as error:  # HPE_FAST_BACKEND
        return rows, [*missing, str(error)]
    features = " ".join(name for name in CPU_FEATURES if name in cpu_flags()) or "unknown"
    rows |= {"GPU": _gpus(torch), "CPU features": features, **_kernel_rows(info, torch.get_num_threads())}
    if driver and torch.version.cuda is None:
        missing.append("an NVIDIA driver, but a torch without CUDA: install torch's CUDA build (pytorch.org)")
    return rows, missing + _kernel_problems(info, torch.cuda.is_available())


def main() -> int:
    """Prints the report."""
    rows, missing = report()
    for name, value in rows.items():
        print(f"{name:14} {value}")
    print("\n".join(["missing:", *(f"  - {item}" for item in missing)]) if missing else "nothing is missing")
    return 0


if __name__ == "__main__":
    sys.exit(main())
