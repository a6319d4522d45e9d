"""``python -m hpe_fast.info`` says what is missing, whatever is."""

import subprocess
import sys

import pytest
import torch

from hpe_fast import info
from hpe_fast.ops import build_info, native


@pytest.fixture
def build(monkeypatch):
    """What the compiled module is said to be."""
    found = {**build_info(), "problem": None, "cpu_kernels": True, "cuda_kernels": False, "backend": "auto"}
    monkeypatch.setattr("hpe_fast.ops.build_info", lambda: found)
    return found


def test_command():
    run = subprocess.run([sys.executable, "-m", "hpe_fast.info"], capture_output=True, text=True, check=True)
    for word in (
        "hpe_fast",
        "Python",
        "torch",
        "DALI",
        "CPU features",
        "NVIDIA driver",
        "GPU",
        "CPU kernels",
        "CUDA kernels",
    ):
        assert f"\n{word:14} " in f"\n{run.stdout}"
    assert torch.__version__ in run.stdout
    assert "missing" in run.stdout


def test_without_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('no torch')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from hpe_fast.info import main; sys.exit(main())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "run `pip install torch`" in run.stdout


def test_without_dali(monkeypatch):
    monkeypatch.setattr(info, "DALI_PACKAGES", ("nvidia-dali-cuda999",))
    rows, missing = info.report()
    assert rows["DALI"] == "missing"
    assert any("pip install nvidia-dali-cuda999" in item for item in missing)


def test_without_the_module(build):
    build.update(cpu_kernels=False, problem="hpe_fast's compiled module _hpe_fast is missing: run `pip install .`")
    rows, missing = info.report()
    assert rows["CPU kernels"] == rows["CUDA kernels"] == "none"
    assert build["problem"] in missing


def test_with_everything(build, monkeypatch):
    build.update(simd="avx512", cuda_kernels=True, cuda_architectures="75;90", cuda_version="13.0", cuda_problem=None)
    monkeypatch.setattr(info, "nvidia_driver", lambda: None)
    rows, missing = info.report()
    assert rows["CPU kernels"].startswith("avx512, ")
    assert rows["CUDA kernels"] == "75;90 (toolkit 13.0)"
    assert not [item for item in missing if "DALI" not in item]


def test_a_gpu_without_kernels(build):
    assert native.CUDA_REMEDY in "".join(info._kernel_problems(build, has_gpu=True))
    assert not info._kernel_problems(build, has_gpu=False)


def test_an_old_driver_and_a_forced_backend(build):
    build.update(cuda_kernels=True, cuda_problem="update the driver", backend="torch")
    problems = info._kernel_problems(build, has_gpu=True)
    assert "update the driver" in problems
    assert any("HPE_FAST_BACKEND=torch" in problem for problem in problems)


def test_driver_version_is_read_from_the_kernel(monkeypatch, tmp_path):
    file = tmp_path / "version"
    file.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:12:38 UTC 2025\nGCC version: 12\n"
    )
    monkeypatch.setattr(info, "NVIDIA_DRIVER", file)
    assert info.nvidia_driver() == "580.65.06"
    file.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\n")
    assert info.nvidia_driver() == "570.86.15"
    monkeypatch.setattr(info, "NVIDIA_DRIVER", tmp_path / "none")
    assert info.nvidia_driver() is None


def test_a_driver_and_a_torch_without_cuda(monkeypatch):
    monkeypatch.setattr(info, "nvidia_driver", lambda: "580.65.06")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert any("install torch's CUDA build" in item for item in info.report()[1])
