"""Pictures a second of our loader beside an OpenCV DataLoader on the same two cores, and where the time goes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest
import torch

from benchmarks import machine, opencv_rival
from benchmarks.timing import CLOCK, middle, ratio
from hpe_fast.data.augment import NO_AUGMENTATION, PAPER_AUGMENTATION
from hpe_fast.data.loader import ImageLoader
from hpe_fast.data.sample import bundled_sample
from hpe_fast.data.store import PoseStore, PoseStoreWriter
from hpe_fast.ops import PAPER_NORMALIZATION, prepare_images

PICTURES, SIZE, BATCH, CORES, ROUNDS = 1536, 256, 32, 2, 5
BAR = 1.5
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PoseStore:
    """The bundled sample's pictures at twice their size."""
    source = PoseStore(bundled_sample()["train"])
    scale = SIZE / source.image_size[0]
    path = tmp_path_factory.mktemp("data") / "train.h5"
    with PoseStoreWriter(path, (SIZE, SIZE)) as writer:
        for row in range(PICTURES):
            picture = cv2.resize(source.image(row), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
            jpeg = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
            writer.append(jpeg, (source.pose2d[row] + 0.5) * scale - 0.5, source.visible[row])
    return PoseStore(path)


@pytest.fixture(scope="module")
def same_cores() -> Iterator[None]:
    """Pins every thread of this process, and what it starts from now on, to the same cores."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("rivals cannot be held to the same cores on this system")
    before = {int(task): os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task")}
    cores = sorted(os.sched_getaffinity(0))[-CORES:]
    for task in before:
        os.sched_setaffinity(task, cores)
    yield
    for task in map(int, os.listdir("/proc/self/task")):
        os.sched_setaffinity(task, before.get(task, before[os.getpid()]))


def our_epoch(loader: ImageLoader) -> None:
    """Network input of every picture, on the loader's device."""
    for batch in loader.epoch():
        prepared(batch)
    if loader.device.type == "cuda":
        torch.cuda.synchronize()


def prepared(batch) -> torch.Tensor:
    noise = {"noise_std": batch.noise_std, "sample_ids": batch.sample_ids}
    return prepare_images(batch.images, PAPER_NORMALIZATION, color=batch.color, **noise)


def opencv_epoch(loader: torch.utils.data.DataLoader, device: str) -> None:
    for images, _ in loader:
        images.to(device, non_blocking=True).permute(0, 3, 1, 2)
    if device == "cuda":
        torch.cuda.synchronize()


def same_pictures(store: PoseStore, device: str) -> None:
    """Both sides show the same pixels, up to decoders, OpenCV's rounding of colours to whole numbers, and noise."""
    loader = ImageLoader(store, BATCH, augmentation=PAPER_AUGMENTATION, device=device)
    batch = next(loader.epoch())
    ours = prepare_images(batch.images, PAPER_NORMALIZATION, color=batch.color).permute(0, 2, 3, 1).cpu().numpy()
    dataset = opencv_rival.AugmentedPictures(store.path, PAPER_AUGMENTATION)
    dataset.noise_std = np.zeros_like(dataset.noise_std)
    theirs = np.stack([dataset[row][0] for row in range(BATCH)])
    assert np.abs(ours).mean() > 0.1
    assert np.abs(ours - theirs).mean() < 2 / 128
    np.testing.assert_allclose(batch.keypoints.cpu().numpy()[5], dataset[5][1], atol=1e-3)


def in_turns(epochs: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Seconds of whole epochs, round by round, after one round that is not counted."""
    series: dict[str, list[float]] = {name: [] for name in epochs}
    for _ in range(ROUNDS + 1):
        for name, epoch in epochs.items():
            began = time.perf_counter()
            epoch()
            series[name].append(time.perf_counter() - began)
    return {name: seconds[1:] for name, seconds in series.items()}


@pytest.fixture(scope="module", params=DEVICES)
def throughput(request: pytest.FixtureRequest, store: PoseStore, same_cores: None) -> tuple[str, dict]:
    device = request.param
    same_pictures(store, device)
    rival = opencv_rival.make_loader(
        opencv_rival.AugmentedPictures(store.path, PAPER_AUGMENTATION), BATCH, workers=CORES
    )
    ours = ImageLoader(store, BATCH, augmentation=PAPER_AUGMENTATION, shuffle=True, device=device, threads=CORES)
    return device, in_turns({"ours": lambda: our_epoch(ours), "opencv": lambda: opencv_epoch(rival, device)})


def report(benchmark, group: str, seconds: list[float], **facts: object) -> None:
    benchmark.group = group
    benchmark.extra_info.update(facts)
    CLOCK.load(seconds)
    benchmark.pedantic(lambda: None, rounds=len(seconds))


@pytest.mark.benchmark(timer=CLOCK.read)
@pytest.mark.parametrize("rival", ["ours", "opencv"])
def test_loader(rival, throughput, benchmark):
    device, series = throughput
    report(
        benchmark,
        f"loader-{device}",
        series[rival],
        data="throughput",
        device=device,
        rival=rival,
        images_per_second=PICTURES / middle(series, rival),
        times_opencv=ratio(series, "opencv", rival),
        bar=BAR,
        machine=machine.describe(device),
    )


def our_stages(store: PoseStore, device: str) -> dict[str, Callable[[], None]]:
    """Each stage on top of those before it, for the whole store."""

    def read() -> None:
        for row in range(len(store)):
            store.read_jpeg(row)

    def drained(augmentation) -> Callable[[], None]:
        loader = ImageLoader(store, BATCH, augmentation=augmentation, device=device, threads=CORES)

        def run() -> None:
            for _ in loader.epoch():
                pass
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    full = ImageLoader(store, BATCH, augmentation=PAPER_AUGMENTATION, device=device, threads=CORES)
    return {
        "read": read,
        "decode": drained(NO_AUGMENTATION),
        "geometry": drained(PAPER_AUGMENTATION),
        "colour, noise, normalise": lambda: our_epoch(full),
    }


def opencv_stages(store: PoseStore) -> dict[str, Callable[[], None]]:
    """The same in this process, one thread: what a worker does."""
    dataset = opencv_rival.AugmentedPictures(store.path, PAPER_AUGMENTATION)

    def run(stage: str) -> None:
        for row in range(len(store)):
            jpeg = store.read_jpeg(row)
            if stage == "read":
                continue
            picture = opencv_rival.decode(jpeg)
            if stage == "decode":
                continue
            picture = opencv_rival.move(picture, dataset.matrix[row], dataset.fill)
            if stage != "geometry":
                opencv_rival.finish(picture, dataset.color[row], float(dataset.noise_std[row]))

    names = ("read", "decode", "geometry", "colour, noise, normalise")
    return {name: lambda name=name: run(name) for name in names}


def shares(series: dict[str, list[float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds a picture of each stage alone, and its share of the whole."""
    totals = [1e3 * middle(series, name) / PICTURES for name in series]
    alone = np.maximum(np.diff([0.0, *totals]), 0.0)
    return (
        dict(zip(series, alone.tolist(), strict=True)),
        dict(zip(series, (alone / alone.sum()).tolist(), strict=True)),
    )


@pytest.mark.benchmark(timer=CLOCK.read)
@pytest.mark.parametrize("rival", [*(f"ours-{device}" for device in DEVICES), "opencv"])
def test_stages(rival, store, same_cores, benchmark):
    device = rival.removeprefix("ours-")
    if rival == "opencv":
        cv2.setNumThreads(0)
    series = in_turns(opencv_stages(store) if rival == "opencv" else our_stages(store, device))
    milliseconds, share = shares(series)
    report(
        benchmark,
        "stages",
        series["colour, noise, normalise"],
        data="stages",
        rival=rival,
        milliseconds_per_image=milliseconds,
        share=share,
        machine=machine.describe("cpu" if rival == "opencv" else device),
    )
