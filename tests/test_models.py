"""The networks: official names and shapes, the arithmetic behind them, sizes, memory formats, statistics."""

from __future__ import annotations

import ast
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hpe_fast.models import (
    build_model,
    hrnet,
    hrnet_paper,
    hrnet_tiny,
    hrnet_w32,
    hrnet_w48,
    lifter,
    simple_baseline,
)

SMALL = {"width": 4, "modules": (1, 2, 2), "blocks": 2}
#: Parameters of torchvision's ResNets without their classifier.
RESNET_PARAMETERS = {18: 11_176_512, 34: 21_284_672, 50: 23_508_032, 101: 42_500_160, 152: 58_143_808}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Networks this small lose more to waiting threads than they gain, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def on_meta(builder, *args, **kwargs) -> nn.Module:
    """The model without memory: names and shapes only."""
    with torch.device("meta"):
        return builder(*args, **kwargs)


def scrambled(model: nn.Module) -> nn.Module:
    """The model in float64 with BatchNorms that have seen something."""
    generator = torch.Generator().manual_seed(1)
    model = model.double()
    for key, value in model.state_dict().items():
        if key.endswith(("running_mean", "bias")):
            value.copy_(torch.randn(value.shape, generator=generator, dtype=value.dtype) * 0.1)
        elif value.dim() == 1:
            value.copy_(torch.rand(value.shape, generator=generator, dtype=value.dtype) + 0.5)
    return model.eval()


class OfficialHRNet:
    """The official network restated from its parameter names alone, in evaluation mode."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def has(self, prefix: str) -> bool:
        return any(key.startswith(f"{prefix}.") for key in self.state)

    def conv_bn(self, x: Tensor, conv: str, bn: str, stride: int = 1) -> Tensor:
        weight = self.state[f"{conv}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        mean, var, gain, bias = (self.state[f"{bn}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        mean, var, gain, bias = (v.view(1, -1, 1, 1) for v in (mean, var, gain, bias))
        return (x - mean) / (var + 1e-5).sqrt() * gain + bias

    def block(self, x: Tensor, name: str) -> Tensor:
        count = 3 if self.has(f"{name}.conv3") else 2
        y = x
        for i in range(1, count + 1):
            y = self.conv_bn(y, f"{name}.conv{i}", f"{name}.bn{i}")
            y = y.relu() if i < count else y
        if self.has(f"{name}.downsample"):
            x = self.conv_bn(x, f"{name}.downsample.0", f"{name}.downsample.1")
        return (x + y).relu()

    def blocks(self, x: Tensor, name: str) -> Tensor:
        i = 0
        while self.has(f"{name}.{i}"):
            x = self.block(x, f"{name}.{i}")
            i += 1
        return x

    def transition(self, maps: list[Tensor], name: str, count: int) -> list[Tensor]:
        out = []
        for i in range(count):
            if i >= len(maps):
                out.append(self.conv_bn(maps[-1], f"{name}.{i}.0.0", f"{name}.{i}.0.1", stride=2).relu())
            elif self.has(f"{name}.{i}"):
                out.append(self.conv_bn(maps[i], f"{name}.{i}.0", f"{name}.{i}.1").relu())
            else:
                out.append(maps[i])
        return out

    def bring(self, x: Tensor, name: str, source: int, target: int) -> Tensor:
        if source > target:
            x = self.conv_bn(x, f"{name}.0", f"{name}.1")
            factor = 2 ** (source - target)
            return x.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
        for k in range(target - source):
            x = self.conv_bn(x, f"{name}.{k}.0", f"{name}.{k}.1", stride=2)
            x = x.relu() if k < target - source - 1 else x
        return x

    def exchange(self, maps: list[Tensor], name: str) -> list[Tensor]:
        maps = [self.blocks(x, f"{name}.branches.{b}") for b, x in enumerate(maps)]
        targets = [i for i in range(len(maps)) if self.has(f"{name}.fuse_layers.{i}")]
        return [
            sum(self.bring(x, f"{name}.fuse_layers.{i}.{j}", j, i) for j, x in enumerate(maps)).relu() for i in targets
        ]

    def __call__(self, images: Tensor) -> Tensor:
        x = self.conv_bn(images, "conv1", "bn1", stride=2).relu()
        x = self.conv_bn(x, "conv2", "bn2", stride=2).relu()
        maps = [self.blocks(x, "layer1")]
        for stage in (2, 3, 4):
            maps = self.transition(maps, f"transition{stage - 1}", stage)
            module = 0
            while self.has(f"stage{stage}.{module}"):
                maps = self.exchange(maps, f"stage{stage}.{module}")
                module += 1
        return F.conv2d(maps[0], self.state["final_layer.weight"], self.state["final_layer.bias"])


class TestHRNet:
    @pytest.mark.parametrize(("builder", "column"), [(hrnet_w32, 1), (hrnet_w48, 2)])
    def test_names_shapes_and_order_are_official(self, builder, column):
        text = gzip.decompress((Path(__file__).parent / "data" / "hrnet_keys.tsv.gz").read_bytes()).decode()
        rows = [line.split("\t") for line in text.splitlines()[1:]]
        official = [(row[0], ast.literal_eval(row[column])) for row in rows]
        assert len(official) == 1754
        assert [(key, tuple(value.shape)) for key, value in on_meta(builder).state_dict().items()] == official

    @pytest.mark.parametrize(
        ("builder", "joints", "count"),
        [
            (hrnet_w32, 17, 28_536_113),
            (hrnet_w48, 17, 63_595_745),
            (hrnet_w32, 16, 28_536_080),
            (hrnet_w48, 16, 63_595_696),
            (hrnet_paper, 17, 9_301_745),
        ],
    )
    def test_parameter_counts(self, builder, joints, count):
        assert parameters(on_meta(builder, joints)) == count

    def test_tiny_is_an_hrnet_of_few_parameters(self):
        model = on_meta(hrnet_tiny)
        assert parameters(model) < 4e6
        official = set(on_meta(hrnet_w32).state_dict())
        assert set(model.state_dict()) < official

    def test_computes_what_the_official_network_computes(self):
        model = scrambled(hrnet(**SMALL, joints=5))
        images = torch.randn(2, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            ours, official = model(images), OfficialHRNet(model.state_dict())(images)
        assert ours.abs().max() > 1e-2
        torch.testing.assert_close(ours, official, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("size", [255, 256])
    def test_official_and_paper_sizes_give_64(self, size):
        with torch.no_grad():
            assert hrnet(**SMALL)(torch.zeros(1, 3, size, size)).shape == (1, 17, 64, 64)

    @settings(max_examples=15, deadline=None)
    @given(height=st.integers(1, 75), width=st.integers(1, 75))
    def test_any_size(self, height, width):
        model = hrnet(4, 3, (1, 1, 1), 1).eval()
        with torch.no_grad():
            heatmaps = model(torch.zeros(1, 3, height, width))
        assert heatmaps.shape == (1, 3, -(-height // 4), -(-width // 4))

    def test_batchnorm_is_official(self):
        norms = [m for m in on_meta(hrnet_w32).modules() if isinstance(m, nn.BatchNorm2d)]
        assert len(norms) == 292
        assert {(m.momentum, m.eps) for m in norms} == {(0.1, 1e-5)}

    def test_initialisation_keeps_the_scale_of_features(self):
        model = hrnet(16, modules=(1, 1, 1), blocks=1)
        assert model.conv2.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
        assert model.final_layer.weight.std().item() == pytest.approx(0.001, rel=0.2)
        assert not model.final_layer.bias.any()

    def test_learns_from_scratch(self):
        torch.manual_seed(0)
        model = hrnet(8, 1, (1, 1, 1), 1)
        spots = torch.tensor([[3, 4], [12, 5], [8, 13], [2, 11]])
        images = torch.zeros(4, 3, 64, 64)
        target = torch.zeros(4, 1, 16, 16)
        for i, (x, y) in enumerate(spots):
            images[i, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] = 1
            target[i, 0, y, x] = 1
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(60):
            loss = (model(images) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss < 0.2 * target.square().mean()

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            ({"width": 0}, "width must be a positive int, got 0"),
            ({"joints": 1.5}, "joints must be a positive int"),
            ({"blocks": True}, "blocks must be a positive int"),
            ({"modules": (1, 4)}, "modules must be three"),
            ({"modules": (1, 0, 3)}, r"modules\[1\] must be a positive int, got 0"),
            ({"modules": 3}, "modules must be three"),
        ],
    )
    def test_bad_arguments(self, arguments, match):
        with pytest.raises(ValueError, match=match):
            hrnet(**arguments)


class TestSuperviseStages:
    def test_three_heatmaps_in_training_one_in_evaluation(self):
        model = hrnet(**SMALL, supervise_stages=True)
        images = torch.randn(2, 3, 64, 64)
        heatmaps = model(images)
        assert [tuple(h.shape) for h in heatmaps] == [(2, 17, 16, 16)] * 3
        assert isinstance(model.eval()(images), Tensor)

    def test_adds_two_heads_and_changes_nothing_else(self):
        plain, supervised = (on_meta(hrnet, **SMALL, supervise_stages=s).state_dict() for s in (False, True))
        heads = [f"{stage}_head.{part}" for stage in ("stage2", "stage3") for part in ("weight", "bias")]
        assert list(supervised) == list(plain) + heads

    @pytest.mark.parametrize(("index", "reached"), [(0, "stage2"), (1, "stage3"), (2, "stage4")])
    def test_each_heatmap_comes_from_its_stage(self, index, reached):
        model = hrnet(**SMALL, supervise_stages=True)
        model(torch.randn(2, 3, 64, 64))[index].sum().backward()
        touched = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
        assert touched & {"stage2", "stage3", "stage4"} == {f"stage{i}" for i in range(2, int(reached[-1]) + 1)}
        assert len(touched & {"stage2_head", "stage3_head", "final_layer"}) == 1


class TestSimpleBaseline:
    @pytest.mark.parametrize("depth", RESNET_PARAMETERS)
    def test_parameter_counts(self, depth):
        features = 512 if depth < 50 else 2048
        head = 16 * 256 * (features + 256 + 256) + 3 * 512 + 17 * 256 + 17
        assert parameters(on_meta(simple_baseline, depth)) == RESNET_PARAMETERS[depth] + head

    def test_names_are_official(self):
        def names(prefix, *norms):
            return {f"{prefix}{norm}.{k}" for norm in norms for k in ("weight", "bias", "running_mean", "running_var")}

        state = on_meta(simple_baseline, 50).state_dict()
        official = {"conv1.weight", *names("", "bn1"), "final_layer.weight", "final_layer.bias"}
        for layer, blocks in enumerate((3, 4, 6, 3), start=1):
            for block in range(blocks):
                prefix = f"layer{layer}.{block}."
                official |= {f"{prefix}conv{i}.weight" for i in (1, 2, 3)} | names(prefix, "bn1", "bn2", "bn3")
            official |= {f"layer{layer}.0.downsample.0.weight"} | names(f"layer{layer}.0.downsample.", "1")
        official |= {f"deconv_layers.{i}.weight" for i in (0, 3, 6)} | names("deconv_layers.", "1", "4", "7")
        assert {key for key in state if not key.endswith("num_batches_tracked")} == official
        assert state["deconv_layers.0.weight"].shape == (2048, 256, 4, 4)
        assert state["layer2.0.conv2.weight"].shape == (128, 128, 3, 3)

    def test_the_stride_is_in_the_3x3_convolution(self):
        model = on_meta(simple_baseline, 50)
        assert (model.layer2[0].conv1.stride, model.layer2[0].conv2.stride) == ((1, 1), (2, 2))

    @pytest.mark.parametrize("size", [255, 256])
    def test_sizes(self, size):
        with torch.no_grad():
            assert simple_baseline(18, 4)(torch.zeros(1, 3, size, size)).shape == (1, 4, 64, 64)

    @pytest.mark.parametrize("depth", [49, "50", None])
    def test_bad_depth(self, depth):
        with pytest.raises(ValueError, match=r"depth must be one of \[18, 34, 50, 101, 152\]"):
            simple_baseline(depth)


def detectors() -> list:
    return [pytest.param(lambda: hrnet(**SMALL), id="hrnet"), pytest.param(lambda: simple_baseline(18), id="baseline")]


class TestMemoryFormat:
    @pytest.mark.parametrize("build", detectors())
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_channels_last_stays(self, build, dtype):
        model = build().to(memory_format=torch.channels_last)
        images = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            heatmaps = model(images)
        assert heatmaps.dtype == dtype
        assert heatmaps.is_contiguous(memory_format=torch.channels_last)

    def test_gives_the_same_heatmaps(self):
        model = scrambled(hrnet(**SMALL))
        images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
        with torch.no_grad():
            plain = model(images)
            last = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
        torch.testing.assert_close(plain, last, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_compiles_to_one_graph(training):
    torch.manual_seed(0)
    model = hrnet(4, 3, (1, 1, 1), 1, supervise_stages=True).train(training)
    images = torch.randn(2, 3, 32, 32)
    expected = model(images)
    compiled = torch.compile(model, fullgraph=True)(images)
    torch.testing.assert_close(compiled, expected, rtol=1e-3, atol=1e-5)


def restated_lifter(model: nn.Module, keypoints: np.ndarray) -> np.ndarray:
    """Martinez et al. in float64 numpy, in evaluation mode."""
    state = {key: value.double().numpy() for key, value in model.state_dict().items()}

    def dense(x, linear, norm):
        x = x @ state[f"{linear}.weight"].T + state[f"{linear}.bias"]
        scale = state[f"{norm}.weight"] / np.sqrt(state[f"{norm}.running_var"] + 1e-5)
        return np.maximum((x - state[f"{norm}.running_mean"]) * scale + state[f"{norm}.bias"], 0)

    std = np.where(state["input_std"] == 0, 1, state["input_std"])
    x = dense((keypoints.reshape(len(keypoints), -1) - state["input_mean"]) / std, "w1", "batch_norm1")
    for i in range(model.config["blocks"]):
        stage = f"linear_stages.{i}"
        y = dense(x, f"{stage}.w1", f"{stage}.batch_norm1")
        x = x + dense(y, f"{stage}.w2", f"{stage}.batch_norm2")
    y = x @ state["w2.weight"].T + state["w2.bias"]
    return (y * state["output_std"] + state["output_mean"]).reshape(len(x), -1, 3)


def poses(count: int = 50, joints: int = 17, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Keypoints in crop units and root-relative joints in mm."""
    generator = torch.Generator().manual_seed(seed)
    joints3d = 300 * torch.randn(count, joints, 3, generator=generator)
    return torch.rand(count, joints, 2, generator=generator), joints3d - joints3d[:, :1]


class TestLifter:
    @pytest.mark.parametrize(
        ("in_joints", "out_joints", "count"),
        [(16, 16, 4_291_632), (16, 17, 4_294_707), (17, 16, 4_293_680), (17, 17, 4_296_755)],
    )
    def test_parameter_counts(self, in_joints, out_joints, count):
        assert parameters(on_meta(lifter, in_joints, out_joints)) == count

    def test_names_are_weigqs(self):
        norms = {"batch_norm1"} | {f"linear_stages.{i}.batch_norm{k}" for i in (0, 1) for k in (1, 2)}
        dense = {"w1", "w2"} | {f"linear_stages.{i}.w{k}" for i in (0, 1) for k in (1, 2)}
        fields = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        official = {f"{name}.{k}" for name in norms for k in fields} | {
            f"{name}.{k}" for name in dense for k in fields[:2]
        }
        statistics = {f"{side}_{value}" for side in ("input", "output") for value in ("mean", "std")}
        assert set(on_meta(lifter).state_dict()) == official | statistics

    @pytest.mark.parametrize("fitted", [False, True])
    def test_computes_what_the_paper_says(self, fitted):
        model = scrambled(lifter(width=32, blocks=3))
        keypoints, joints3d = poses()
        if fitted:
            model.fit_statistics(keypoints, joints3d)
        ours = model(keypoints.double()).detach().numpy()
        np.testing.assert_allclose(ours, restated_lifter(model, keypoints.double().numpy()), rtol=1e-10, atol=1e-9)

    def test_statistics_are_those_of_the_samples(self):
        model = lifter(width=8)
        keypoints, joints3d = poses()
        model.fit_statistics(keypoints, joints3d)
        flat = joints3d.double().numpy().reshape(50, -1)
        np.testing.assert_allclose(model.output_mean, flat.mean(0), rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(model.output_std, flat.std(0), rtol=1e-5)
        np.testing.assert_allclose(model.input_mean, keypoints.double().numpy().reshape(50, -1).mean(0), rtol=1e-5)
        normalized = model.normalize_joints(joints3d)
        torch.testing.assert_close(normalized[:, 1:].std(0, correction=0), torch.ones(16, 3))

    def test_the_hip_stays_at_the_origin(self):
        model = lifter(width=8)
        keypoints, joints3d = poses()
        model.fit_statistics(keypoints, joints3d)
        assert not model.output_std[:3].any()
        assert not model(keypoints)[:, 0].any()
        assert not model.normalize_joints(joints3d)[:, 0].any()

    def test_a_constant_keypoint_does_not_blow_up(self):
        model = lifter(width=8).eval()
        keypoints, joints3d = poses()
        keypoints[:, 0] = 0.3
        model.fit_statistics(keypoints, joints3d)
        moved = keypoints.clone()
        moved[:, 0] += 0.01
        assert (model.normalize_keypoints(moved)[:, :2] - 0.01).abs().max() < 1e-6

    def test_normalised_space_is_the_inverse_of_millimetres(self):
        model = lifter(width=8).eval()
        keypoints, joints3d = poses()
        model.fit_statistics(keypoints, joints3d)
        torch.testing.assert_close(model.denormalize_joints(model.normalize_joints(joints3d)), joints3d)
        ours, expected = model.normalize_joints(model(keypoints)), model.forward_normalized(keypoints)
        torch.testing.assert_close(ours[:, 1:], expected[:, 1:], rtol=1e-4, atol=1e-5)

    def test_millimetres_are_float32_under_autocast(self):
        model = lifter(width=8)
        with torch.autocast("cpu", torch.bfloat16):
            assert model(torch.rand(4, 17, 2)).dtype == torch.float32

    def test_dropout_acts_in_training_only(self):
        keypoints, _ = poses()
        model = lifter(width=64, dropout=0.5)
        assert not torch.equal(model(keypoints), model(keypoints))
        assert torch.equal(model.eval()(keypoints), model(keypoints))
        model = lifter(width=64, dropout=0)
        assert torch.equal(model(keypoints), model(keypoints))

    @pytest.mark.parametrize("shape", [(4, 34), (4, 16, 2), (4, 17, 3), (17, 2)])
    def test_bad_keypoints(self, shape):
        with pytest.raises(ValueError, match=r"keypoints must be \[B, 17, 2\], got "):
            lifter(width=8)(torch.zeros(shape))

    @pytest.mark.parametrize(
        ("keypoints", "joints3d", "match"),
        [
            (torch.zeros(0, 17, 2), torch.zeros(0, 17, 3), "keypoints must be .* N > 0"),
            (torch.zeros(4, 17, 2), torch.zeros(4, 16, 3), "joints3d must be"),
            (torch.zeros(4, 17, 2), torch.full((4, 17, 3), torch.nan), "joints3d must be finite"),
        ],
    )
    def test_bad_statistics_leave_the_model_alone(self, keypoints, joints3d, match):
        model = lifter(width=8)
        with pytest.raises(ValueError, match=match):
            model.fit_statistics(keypoints, joints3d)
        assert torch.equal(model.input_std, torch.ones(34))

    @pytest.mark.parametrize("arguments", [{"dropout": 1}, {"dropout": -0.1}, {"width": 0}, {"blocks": 0}])
    def test_bad_arguments(self, arguments):
        with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be"):
            lifter(**arguments)


class TestConfig:
    @pytest.mark.parametrize(
        "builder",
        [
            lambda: hrnet(**SMALL, joints=3, supervise_stages=True),
            lambda: simple_baseline(34, 16),
            lambda: lifter(16, 17, 32, 3, 0.25),
        ],
    )
    def test_rebuilds_the_model(self, builder):
        model = on_meta(builder)
        again = on_meta(build_model, json.loads(json.dumps(model.config)))
        assert again.config == model.config
        shapes = [{key: value.shape for key, value in m.state_dict().items()} for m in (model, again)]
        assert shapes[0] == shapes[1]

    @pytest.mark.parametrize(
        ("config", "match"),
        [
            ({}, r"architecture'\] must be one of .* got None"),
            ({"architecture": "vit"}, "got 'vit'"),
            ({"architecture": ["hrnet"]}, "must be one of"),
            ({"architecture": "lifter", "depth": 3}, "config does not describe a model: .*depth"),
            ({"architecture": "hrnet", "width": -1}, "width must be"),
        ],
    )
    def test_bad_config(self, config, match):
        with pytest.raises(ValueError, match=match):
            build_model(config)
