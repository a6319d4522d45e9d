"""From uint8 pictures to 3D joints without this package's pipeline: what the inference benchmark compares with.

All of them run the same weights and find the same joints: the official code's eager float32 in NCHW, ONNX Runtime and
OpenVINO, each with pictures normalised and heatmaps decoded in numpy as the official code does it (quarter offset), and
the lifter in their own engine. The engines choose their number formats themselves.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks import official
from benchmarks.cases import installed
from hpe_fast.models import unit_crop
from hpe_fast.ops import IMAGENET, OFFICIAL, HeatmapCodec
from hpe_fast.pipeline import PosePipeline

#: uint8 pictures [B, H, W, 3] to keypoints [B, 17, 2] px, scores [B, 17] and joints [B, 17, 3] mm.
Answer = tuple[np.ndarray, np.ndarray, np.ndarray]
Rival = Callable[[np.ndarray], Answer]
Network = Callable[[np.ndarray], np.ndarray]

NEEDS = {"onnxruntime": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}


def rivals_here(device: str) -> list[str]:
    """Those that this machine can run; the engines only on a CPU."""
    engines = [name for name, packages in NEEDS.items() if device == "cpu" and all(map(installed, packages))]
    return ["ours", "compiled", "official", *engines]


def around(detector: Network, lifter: Network, codec: HeatmapCodec = OFFICIAL) -> Rival:
    """What the official code does before and after the network."""

    def run(pictures: np.ndarray) -> Answer:
        heatmaps = detector(official.normalized(pictures, IMAGENET.mean, IMAGENET.std))
        coords, scores = official.final_predictions(heatmaps, codec.stride)
        crops = unit_crop(torch.from_numpy(coords), codec.image_size).numpy()
        return coords, scores, lifter(crops)

    return run


def eager(detector: nn.Module, lifter: nn.Module, device: str, codec: HeatmapCodec = OFFICIAL) -> Rival:
    """The networks as they were trained, in float32 and NCHW."""

    def network(model: nn.Module) -> Network:
        model = model.to(device).eval()

        def run(values: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return model(torch.from_numpy(values).to(device)).cpu().numpy()

        return run

    return around(network(detector), network(lifter), codec)


def onnxruntime_rival(detector: nn.Module, lifter: nn.Module, threads: int, codec: HeatmapCodec = OFFICIAL) -> Rival:
    """torch's own ONNX files in ONNX Runtime with every optimisation."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads

    def network(model: nn.Module, example: torch.Tensor) -> Network:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            shapes = ({0: torch.export.Dim("batch")},)
            torch.onnx.export(model.eval(), (example,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda values: session.run(None, {name: values})[0]

    return around(network(detector, _picture(codec)), network(lifter, torch.zeros(2, 17, 2)), codec)


def openvino_rival(
    detector: nn.Module, lifter: nn.Module, threads: int, batch: int, codec: HeatmapCodec = OFFICIAL
) -> Rival:
    """OpenVINO's latency mode for one picture, its throughput mode for more; bfloat16 where it chooses that."""
    import openvino

    hint = "LATENCY" if batch == 1 else "THROUGHPUT"
    settings = {"PERFORMANCE_HINT": hint, "INFERENCE_NUM_THREADS": threads}

    def network(model: nn.Module, example: torch.Tensor) -> Network:
        converted = openvino.convert_model(torch.jit.trace(model.eval(), example), example_input=example)
        compiled = openvino.Core().compile_model(converted, "CPU", settings)
        if batch == 1:
            return lambda values: compiled(values)[0]
        return _divided(compiled, openvino.AsyncInferQueue(compiled), batch)

    return around(network(detector, _picture(codec)), network(lifter, torch.zeros(2, 17, 2)), codec)


def _divided(compiled: object, queue: object, batch: int) -> Network:
    """A batch divided among the streams of the throughput mode, which runs as many requests side by side."""
    streams = min(len(queue), batch)

    def run(values: np.ndarray) -> np.ndarray:
        parts: dict[int, np.ndarray] = {}
        queue.set_callback(lambda request, i: parts.__setitem__(i, request.get_output_tensor(0).data.copy()))
        for i, part in enumerate(np.array_split(values, streams)):
            queue.start_async({0: part}, i)
        queue.wait_all()
        return np.concatenate([parts[i] for i in range(streams)])

    return run


def ours(pipeline: PosePipeline) -> Rival:
    """This package's pipeline, with its results taken to numpy like everybody's."""

    def run(pictures: np.ndarray) -> Answer:
        poses = pipeline(pictures).to("cpu")
        return poses.keypoints.numpy(), poses.scores.numpy(), poses.joints3d.numpy()

    return run


def _picture(codec: HeatmapCodec) -> torch.Tensor:
    return torch.zeros(2, 3, *codec.image_size)


def check(answers: dict[str, Answer], tolerance: float, pixels: float = float("inf")) -> None:
    """Everybody found the same joints: scores within ``tolerance`` of their spread, positions within ``pixels``.

    The middle of all joints is compared. Positions mean something only where the heatmaps have clear peaks or
    all compute in float32: a random network's have many maxima that are almost equal.

    Raises:
        AssertionError: naming who differs and by how much.
    """
    expected = answers["official"]
    spread = float(np.std(expected[1])) + 1e-12
    for name, answer in answers.items():
        assert all(a.shape == b.shape for a, b in zip(answer, expected, strict=True)), f"{name}: other shapes"
        score = float(np.median(np.abs(answer[1] - expected[1]))) / spread
        shift = float(np.median(np.linalg.norm(answer[0] - expected[0], axis=-1)))
        assert score <= tolerance, f"{name}: scores differ by {score:.3f} of their spread"
        assert shift <= pixels, f"{name}: joints differ by {shift:.2f} px"
