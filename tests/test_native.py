"""Finding the compiled module: absent, stale, broken, without CUDA, and told not to use it."""

import subprocess
import sys
import types
import warnings

import pytest
import torch

import hpe_fast
from hpe_fast.ops import build_info, heatmap_mse_loss, library, native, render_heatmaps

KEYPOINTS = torch.tensor([[[40.0, 80.0]]])


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Looks for the module anew before a test and after it."""
    for name in ("HPE_FAST_BACKEND", "HPE_FAST_STRICT"):
        monkeypatch.delenv(name, raising=False)
    native.reset()
    yield
    monkeypatch.undo()
    native.reset()


def install(monkeypatch, **attributes):
    """Puts a module of these attributes in the compiled module's place."""
    module = types.ModuleType("_hpe_fast")
    defaults = {
        "__version__": hpe_fast.__version__,
        "built_with_cuda": False,
        "cuda_architectures": "",
        "cuda_version": "",
        "simd": lambda: "portable",
        "cpu": types.ModuleType("_hpe_fast.cpu"),
    }
    for name, value in {**defaults, **attributes}.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "_hpe_fast", module)
    return module


def with_cuda(driver, runtime):
    return {
        "built_with_cuda": True,
        "cuda_architectures": "75;80;90",
        "cuda_version": "13.0",
        "driver_version": lambda: driver,
        "runtime_version": lambda: runtime,
        "cuda": types.ModuleType("_hpe_fast.cuda"),
    }


class TestMissing:
    def test_absent(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "_hpe_fast", None)
        with pytest.raises(
            native.NativeModuleError, match=r"_hpe_fast is missing: run `pip install \.`.*HPE_FAST_BACKEND=torch"
        ):
            render_heatmaps(KEYPOINTS)

    def test_stale(self, monkeypatch):
        install(monkeypatch, __version__="0.0.9")
        with pytest.raises(
            ImportError, match=rf"_hpe_fast is stale \(built 0\.0\.9, package {hpe_fast.__version__}\): run"
        ):
            heatmap_mse_loss(torch.zeros(1, 1, 64, 64), KEYPOINTS)

    def test_of_a_time_without_versions(self, monkeypatch):
        monkeypatch.delattr(install(monkeypatch), "__version__")
        with pytest.raises(ImportError, match="is stale"):
            render_heatmaps(KEYPOINTS)

    def test_broken(self, monkeypatch, tmp_path):
        monkeypatch.delitem(sys.modules, "_hpe_fast", raising=False)
        (tmp_path / "_hpe_fast.py").write_text("raise ImportError('undefined symbol: _Z3foo')")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(ImportError, match=r"does not load \(undefined symbol: _Z3foo\): run"):
            render_heatmaps(KEYPOINTS)

    def test_importing_the_package_works_all_the_same(self, tmp_path):
        (tmp_path / "_hpe_fast.py").write_text("raise ImportError('broken')")
        code = "import hpe_fast.ops; print(hpe_fast.build_info()['problem'])"
        run = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "does not load (broken)" in run.stdout

    def test_the_twins_do_without(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "_hpe_fast", None)
        monkeypatch.setenv("HPE_FAST_BACKEND", "torch")
        assert render_heatmaps(KEYPOINTS)[0, 0, 20, 10] == 1


class TestChoice:
    def test_the_module_is_used(self, monkeypatch):
        module = install(monkeypatch)
        assert native.module() is module
        assert native.cpu() is module.cpu

    def test_torch_means_torch(self, monkeypatch):
        install(monkeypatch, **with_cuda(13000, 13000))
        monkeypatch.setenv("HPE_FAST_BACKEND", "torch")
        monkeypatch.setenv("HPE_FAST_STRICT", "1")
        assert native.cpu() is None
        assert native.cuda() is None

    def test_unknown_backend(self, monkeypatch):
        monkeypatch.setenv("HPE_FAST_BACKEND", "metal")
        with pytest.raises(ValueError, match="HPE_FAST_BACKEND must be auto or torch, got 'metal'"):
            render_heatmaps(KEYPOINTS)

    def test_kernels_get_the_threads_of_torch(self):
        assert library._where(KEYPOINTS) == (torch.get_num_threads(),)


class TestWithoutCudaKernels:
    def test_one_warning_says_how_to_get_them(self, monkeypatch):
        install(monkeypatch)
        with pytest.warns(
            RuntimeWarning, match=r"built without CUDA kernels: run `HPE_FAST_CUDA=ON pip install.*twins run"
        ):
            assert native.cuda() is None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert native.cuda() is None

    def test_strict(self, monkeypatch):
        install(monkeypatch)
        monkeypatch.setenv("HPE_FAST_STRICT", "1")
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"built without CUDA kernels.*HPE_FAST_STRICT is set"):
                native.cuda()

    def test_strict_can_be_switched_off(self, monkeypatch):
        install(monkeypatch)
        monkeypatch.setenv("HPE_FAST_STRICT", "0")
        with pytest.warns(RuntimeWarning):
            assert native.cuda() is None

    def test_old_driver(self, monkeypatch):
        install(monkeypatch, **with_cuda(12080, 13000))
        with pytest.warns(
            RuntimeWarning, match="need a driver for CUDA 13, this one is for CUDA 12: update the driver"
        ):
            assert native.cuda() is None

    @pytest.mark.parametrize("driver", [13000, 13020, 14000, 0])
    def test_new_and_unknown_drivers(self, monkeypatch, driver):
        module = install(monkeypatch, **with_cuda(driver, 13000))
        assert native.cuda() is module.cuda


class TestBuildInfo:
    def test_of_this_build(self):
        info = build_info()
        assert info["version"] == hpe_fast.__version__
        assert info["cpu_kernels"] == (info["problem"] is None)
        assert info["simd"] in (("avx512", "avx2", "portable") if info["cpu_kernels"] else ("",))

    def test_missing(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "_hpe_fast", None)
        info = build_info()
        assert not info["cpu_kernels"]
        assert not info["cuda_kernels"]
        assert "missing" in info["problem"]

    def test_with_cuda(self, monkeypatch):
        install(monkeypatch, **with_cuda(12080, 13000))
        info = build_info()
        assert info["cuda_kernels"]
        assert info["cuda_architectures"] == "75;80;90"
        assert (info["driver_version"], info["runtime_version"]) == (12080, 13000)
        assert "update the driver" in info["cuda_problem"]
