"""From uint8 pictures to 3D joints beside other ways to do it: latency at batch 1, throughput at larger ones.

``--batches 1,8`` for small machines (default: 1, 8, 32 and 128); ``--seconds`` for each.
The network is HRNet-W32 at 256 x 256 pixels. Its weights are random, but the BatchNorm statistics are those of the
pictures, so that numbers are as large as in a trained network (positions are not: maxima are compared); the pictures
are the bundled sample's, enlarged.
"""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks import infer_rivals as rivals
from benchmarks import machine
from benchmarks.cases import can_compile
from benchmarks.timing import CLOCK, Series, middle, ratio, round_robin
from hpe_fast import models
from hpe_fast.data.sample import bundled_sample
from hpe_fast.data.store import PoseStore
from hpe_fast.ops import IMAGENET, OFFICIAL, prepare_images
from hpe_fast.pipeline import PosePipeline

BATCHES = [1, 8, 32, 128]
#: How much less time than the official way ours shall take at batch 8 on a CPU, at 128 on a GPU.
#: Compiled, it shall also take no more time than OpenVINO at batches 1 and 8 (``times_openvino`` at least 1).
BARS = {("cpu", "ours"): 4.0, ("cpu", "compiled"): 6.0, ("cuda", "ours"): 4.0}
#: Of the maxima, which bfloat16 moves; positions are compared in float32, in tests/test_infer_benchmark.py.
SCORE_TOLERANCE = 0.2


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    device = metafunc.config.getoption("--device")
    batches = metafunc.config.getoption("--batches") or BATCHES
    names = [name for name in rivals.rivals_here(device) if name != "compiled" or can_compile(device)]
    metafunc.parametrize(("batch", "rival"), [(batch, name) for batch in batches for name in names])


def pictures(count: int) -> np.ndarray:
    """uint8 [count, 256, 256, 3]."""
    store = PoseStore(bundled_sample()["valid"])
    small = np.stack([store.image(row % len(store)) for row in range(count)])
    large = F.interpolate(torch.from_numpy(small).movedim(3, 1), OFFICIAL.image_size, mode="bilinear")
    return np.ascontiguousarray(large.movedim(1, 3).numpy())


def networks() -> tuple[torch.nn.Module, torch.nn.Module]:
    """Detector and lifter in evaluation mode; the detector's BatchNorm has seen some pictures."""
    torch.manual_seed(0)
    detector, lifter = models.hrnet_w32(), models.lifter().eval()
    norms = [module for module in detector.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        detector.train()(prepare_images(torch.from_numpy(pictures(8)), IMAGENET))
        detector.final_layer.weight.normal_(std=0.1)
    return detector.eval(), lifter


def make(names: list[str], batch: int, device: str) -> dict[str, rivals.Rival]:
    """Each rival, ready to run."""
    detector, lifter = networks()
    threads = torch.get_num_threads()
    makers = {
        "ours": lambda: rivals.ours(PosePipeline(detector, lifter, device, refine="quarter")),
        "compiled": lambda: rivals.ours(PosePipeline(detector, lifter, device, refine="quarter", compile=True)),
        "official": lambda: rivals.eager(detector, lifter, device),
        "onnxruntime": lambda: rivals.onnxruntime_rival(detector, lifter, threads),
        "openvino": lambda: rivals.openvino_rival(detector, lifter, threads, batch),
    }
    return {name: makers[name]() for name in names}


_measured: dict[int, Series] = {}


def measured(batch: int, request: pytest.FixtureRequest) -> Series:
    """All rivals in turns; what each finds is compared before and after: the maxima, and the shape of the 3D joints."""
    if batch not in _measured:
        device, seconds = request.config.getoption("--device"), request.config.getoption("--seconds") or 20.0
        names = [name for name in rivals.rivals_here(device) if name != "compiled" or can_compile(device)]
        ready, images = make(names, batch, device), pictures(batch)
        calls = {name: (lambda rival=rival: rival(images)) for name, rival in ready.items()}
        for moment in ("before", "after"):
            rivals.check({name: call() for name, call in calls.items()}, SCORE_TOLERANCE)
            if moment == "before":
                _measured[batch] = round_robin(calls, device, seconds, least=3)
        del ready, calls
        gc.collect()
    return _measured[batch]


@pytest.mark.benchmark(timer=CLOCK.read)
def test_infer(batch, rival, request, benchmark):
    """Pictures in, joints out: the whole way, as a user of each sees it."""
    device = request.config.getoption("--device")
    series = measured(batch, request)
    benchmark.group = f"infer-w32-{batch}-{device}"
    benchmark.extra_info.update(
        inference="w32",
        batch=batch,
        device=device,
        rival=rival,
        milliseconds_per_image=1e3 * middle(series, rival) / batch,
        images_per_second=batch / middle(series, rival),
        times_official=ratio(series, "official", rival),
        times_openvino=ratio(series, "openvino", rival) if "openvino" in series else None,
        bar=BARS.get((device, rival)) if batch == {"cpu": 8, "cuda": 128}[device] else None,
        machine=machine.describe(device),
    )
    CLOCK.load(series[rival])
    benchmark.pedantic(lambda: None, rounds=len(series[rival]))
