"""The compiled module: found, checked and chosen here, and nowhere else.

``HPE_FAST_BACKEND=torch`` makes every operator run its PyTorch twin; ``HPE_FAST_STRICT=1`` turns the silent second
best (the twin on CUDA tensors where no CUDA kernels were built) into an error.
"""

from __future__ import annotations

import importlib
import os
import warnings
from contextlib import suppress
from functools import cache
from types import ModuleType

from hpe_fast import __version__

_REMEDY = "run `pip install .` in hpe_fast's source folder, or set HPE_FAST_BACKEND=torch for the slower PyTorch twins"
CUDA_REMEDY = (
    "run `HPE_FAST_CUDA=ON pip install --force-reinstall --no-deps .` in hpe_fast's source folder on a machine with "
    "the CUDA toolkit"
)


# Loaded here, though what is wrong with it is told at the first use: from now on it watches for forks, whose children
# have none of torch's threads.
with suppress(ImportError):
    importlib.import_module("_hpe_fast")


class NativeModuleError(ImportError):
    """The compiled module is missing, stale or broken.

    Example:
        >>> issubclass(NativeModuleError, ImportError)
        True
    """


def backend_name() -> str:
    """``auto`` or ``torch``, from ``HPE_FAST_BACKEND``."""
    name = os.environ.get("HPE_FAST_BACKEND", "auto") or "auto"
    if name not in ("auto", "torch"):
        raise ValueError(f"HPE_FAST_BACKEND must be auto or torch, got {name!r}")
    return name


def problem() -> str | None:
    """What is wrong with the compiled module, as one sentence; None if nothing is."""
    try:
        module = importlib.import_module("_hpe_fast")
    except ModuleNotFoundError as error:
        if error.name != "_hpe_fast":
            raise
        return f"hpe_fast's compiled module _hpe_fast is missing: {_REMEDY}"
    except ImportError as error:
        return f"hpe_fast's compiled module _hpe_fast does not load ({error}): {_REMEDY}"
    built = getattr(module, "__version__", "unknown")
    if built != __version__:
        return f"hpe_fast's compiled module _hpe_fast is stale (built {built}, package {__version__}): {_REMEDY}"
    return None


@cache
def module() -> ModuleType | None:
    """The compiled module, or None where the twins were asked for.

    Raises:
        NativeModuleError: it is missing, stale or broken.
    """
    if backend_name() == "torch":
        return None
    if (sentence := problem()) is not None:
        raise NativeModuleError(sentence)
    return importlib.import_module("_hpe_fast")


@cache
def cpu() -> ModuleType | None:
    """Kernels for CPU tensors; None: run the twin."""
    native = module()
    return None if native is None else native.cpu


def cuda_problem(native: ModuleType) -> str | None:
    """Why CUDA tensors cannot use a compiled module, as one sentence; None if they can."""
    if not native.built_with_cuda:
        return f"hpe_fast was built without CUDA kernels: {CUDA_REMEDY}"
    driver, runtime = native.driver_version(), native.runtime_version()
    if 0 < driver // 1000 < runtime // 1000:
        return (
            f"hpe_fast's CUDA kernels need a driver for CUDA {runtime // 1000}, this one is for CUDA {driver // 1000}: "
            f"update the driver, or build with CUDA toolkit {driver // 1000}"
        )
    return None


@cache
def cuda() -> ModuleType | None:
    """Kernels for CUDA tensors; None: run the twin, after one warning where that is not what was asked for.

    Raises:
        RuntimeError: there are none and ``HPE_FAST_STRICT=1``.
    """
    native = module()
    sentence = None if native is None else cuda_problem(native)
    if sentence is None:
        return None if native is None else native.cuda
    if os.environ.get("HPE_FAST_STRICT", "0") not in ("", "0"):
        raise RuntimeError(f"{sentence} (HPE_FAST_STRICT is set)")
    warnings.warn(f"{sentence}; PyTorch twins run on CUDA tensors until then", RuntimeWarning, stacklevel=2)
    return None


def reset() -> None:
    """Forgets what was found, so that the environment and the module are looked at again."""
    for function in (module, cpu, cuda):
        function.cache_clear()


def build_info() -> dict[str, object]:
    """What is installed: the package's version, its kernels, and what they use.

    Returns:
        ``version``, ``backend`` (``auto`` or ``torch``), ``problem`` and ``cuda_problem`` (a sentence each, or None),
        ``cpu_kernels``, ``cuda_kernels``, ``cuda_architectures``, ``cuda_version`` (of the toolkit), ``simd`` (what the
        CPU kernels chose), ``driver_version`` and ``runtime_version`` (of CUDA, e.g. 13000; 0 where unknown).

    Raises:
        ValueError: an unknown ``HPE_FAST_BACKEND``; never for a module that is missing or stale.

    Example:
        >>> from hpe_fast.ops import build_info
        >>> sorted(build_info())[:3]
        ['backend', 'cpu_kernels', 'cuda_architectures']
    """
    sentence = problem()
    native = None if sentence else importlib.import_module("_hpe_fast")
    with_cuda = bool(native and native.built_with_cuda)
    return {
        "version": __version__,
        "backend": backend_name(),
        "problem": sentence,
        "cuda_problem": cuda_problem(native) if native else sentence,
        "cpu_kernels": native is not None,
        "cuda_kernels": with_cuda,
        "cuda_architectures": native.cuda_architectures if with_cuda else "",
        "cuda_version": native.cuda_version if with_cuda else "",
        "simd": native.simd() if native else "",
        "driver_version": native.driver_version() if with_cuda else 0,
        "runtime_version": native.runtime_version() if with_cuda else 0,
    }
