"""Where and with what something was measured; kept beside every number."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np
import torch

from hpe_fast.ops import build_info


def processor() -> str:
    """Name of the CPU."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe(device: str) -> dict[str, str | int]:
    """Machine and versions."""
    info = build_info()
    facts: dict[str, str | int] = {
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "simd": str(info["simd"]),
        "backend": str(info["backend"]),
        "hpe_fast": str(info["version"]),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = f"torch {torch.version.cuda}, kernels {info['cuda_version']}, driver {info['driver_version']}"
    return facts


def sentence(facts: dict[str, str | int]) -> str:
    """The same in one line."""
    where = f"{facts['gpu']} (CUDA: {facts['cuda']}), " if "gpu" in facts else ""
    cpu = f"{facts['cpu']}, {facts['threads']} threads on {facts['cores']} cores, kernels {facts['simd'] or 'none'}"
    return f"{where}{cpu}; torch {facts['torch']}, Python {facts['python']}, hpe_fast {facts['hpe_fast']}"
