"""Options of the benchmarks, and rivals measured in turns, once for all the tests that report them."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from benchmarks.cases import Case, Spec, all_specs, can_compile, installed, make_case, rival_names
from benchmarks.timing import Series, round_robin

#: Compiling takes seconds a shape, so one batch size of a device has to do.
COMPILED_BATCH = {"cpu": 32, "cuda": 256}
BATCHES = {"cpu": [32], "cuda": [256, 32, 1024]}
#: Seconds for a case, and for all of them; more than that is skipped and says so.
SECONDS = {"cpu": 2.0, "cuda": 0.3}
BUDGET = {"cpu": 240.0, "cuda": 120.0}

#: Without them the data benchmark is left out.
MISSING = [package for package in ("nvidia.dali", "cv2", "h5py") if not installed(package)]
collect_ignore = ["test_bench_data.py"] if MISSING else []

BEGAN = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hpe_fast")
    group.addoption("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    group.addoption("--batches", type=lambda text: [int(word) for word in text.split(",")], help="e.g. 32,256,1024")
    group.addoption("--threads", type=int, default=2, help="of the CPU (default: 2)")
    group.addoption("--seconds", type=float, help="of each case")
    group.addoption("--budget", type=float, help="seconds after which operators that are left are skipped")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(config.getoption("--threads"))
    config.stash[BEGAN] = time.monotonic()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    device = terminalreporter.config.getoption("--device")
    if not can_compile(device):
        terminalreporter.write_line("torch.compile was left out: no C++ compiler, or no Triton for the GPU")
    if MISSING:
        terminalreporter.write_line(f"test_bench_data.py was left out: {', '.join(MISSING)} not installed")


def _is_compiled(spec: Spec) -> bool:
    return spec.batch == COMPILED_BATCH[spec.device] and can_compile(spec.device)


def _or_default(config: pytest.Config, option: str, defaults: dict) -> object:
    value = config.getoption(option)
    return defaults[config.getoption("--device")] if value is None else value


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Operators first: they matter most where the time is short."""
    items.sort(key=lambda item: "test_bench_ops" not in item.nodeid)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "spec" not in metafunc.fixturenames:
        return
    device = metafunc.config.getoption("--device")
    pairs = [
        pytest.param(spec, rival, id=f"{spec}-{rival}")
        # Those that take seconds to compile come last, where the time may be over.
        for spec in sorted(all_specs(_or_default(metafunc.config, "--batches", BATCHES), device), key=_is_compiled)
        for rival in rival_names(spec, _is_compiled(spec))
    ]
    metafunc.parametrize(("spec", "rival"), pairs)


@pytest.fixture(scope="session")
def measured(request: pytest.FixtureRequest) -> Callable[[Spec], tuple[Case, Series]]:
    """Measures the rivals of a case when the first of them is asked for; their results are checked before and after."""
    config = request.config
    seconds, budget = _or_default(config, "--seconds", SECONDS), _or_default(config, "--budget", BUDGET)
    last: dict[Spec, tuple[Case, Series]] = {}

    def measure(spec: Spec) -> tuple[Case, Series]:
        if spec not in last:
            last.clear()
            if time.monotonic() - config.stash[BEGAN] > budget:
                pytest.skip(f"the --budget of {budget:g} s is used up")
            case = make_case(spec, _is_compiled(spec))
            case.drop_broken()
            case.check()
            series = round_robin(case.calls(), spec.device, seconds)
            case.check()
            last[spec] = case, series
        return last[spec]

    return measure
