"""Weights to and from files: our format, those of other projects, and files that are no such thing."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hpe_fast.models import (
    CheckpointError,
    checkpoints,
    hrnet,
    lifter,
    load_checkpoint,
    save_checkpoint,
    simple_baseline,
)

SMALL = {"width": 4, "modules": (1, 2, 1), "blocks": 2}


def small(**arguments) -> nn.Module:
    return hrnet(**{**SMALL, **arguments})


def equal_states(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


def in_mmpose(state: dict[str, Tensor], head: str) -> dict[str, Tensor]:
    heads = ("final_layer.", "deconv_layers.")
    return {f"{head if key.startswith(heads) else 'backbone.'}{key}": value for key, value in state.items()}


class TestOurFormat:
    @pytest.mark.parametrize(
        "build",
        [
            lambda: small(joints=5, supervise_stages=True),
            lambda: simple_baseline(18),
            lambda: lifter(16, 17, 32, 3, 0.25),
        ],
    )
    def test_roundtrip(self, tmp_path, build):
        model = build()
        metadata = {"trained_on": "a réal set", "codec": {"sigma": 2.0, "size": [64, 64]}, "epochs": 3}
        save_checkpoint(tmp_path / "model.safetensors", model, metadata)
        again = load_checkpoint(tmp_path / "model.safetensors")
        assert equal_states(again.state_dict(), model.state_dict())
        assert again.config == model.config
        assert again.metadata == metadata
        assert not again.training
        assert all(p.requires_grad and p.device.type == "cpu" for p in again.parameters())

    def test_the_file_says_what_it_is(self, tmp_path):
        save_checkpoint(tmp_path / "m", lifter(width=8), {"note": [1]})
        with checkpoints.safe_open(tmp_path / "m", "pt") as file:
            texts = file.metadata()
        assert texts["format"] == "hpe_fast/1"
        assert json.loads(texts["config"])["width"] == 8
        assert json.loads(texts["note"]) == [1]

    def test_half_is_half_the_size_and_keeps_statistics(self, tmp_path):
        model = small(width=16)
        with torch.no_grad():
            model.conv1.weight[0, 0, 0, 0] = 1e6
            model.bn1.running_var.fill_(1 / 3)
        for half in (False, True):
            save_checkpoint(tmp_path / f"{half}.safetensors", model, half=half)
        sizes = [os.path.getsize(tmp_path / f"{half}.safetensors") for half in (False, True)]
        assert sizes[1] < 0.65 * sizes[0]
        stored = load_file(tmp_path / "True.safetensors")
        assert stored["conv1.weight"].dtype == torch.bfloat16
        assert stored["conv2.weight"].dtype == torch.float16
        again = load_checkpoint(tmp_path / "True.safetensors")
        assert {p.dtype for p in again.parameters()} == {torch.float32}
        assert torch.equal(again.bn1.running_var, model.bn1.running_var)
        torch.testing.assert_close(again.conv2.weight, model.conv2.weight, rtol=1e-3, atol=1e-6)

    def test_channels_last_and_wrapped_models_are_saved(self, tmp_path):
        model = small().to(memory_format=torch.channels_last)
        save_checkpoint(tmp_path / "m", nn.DataParallel(torch.compile(model)))
        assert equal_states(load_checkpoint(tmp_path / "m").state_dict(), model.state_dict())

    def test_loading_draws_no_random_numbers(self, tmp_path):
        save_checkpoint(tmp_path / "m", small())
        before = torch.get_rng_state()
        load_checkpoint(tmp_path / "m")
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_loaded_state_dict_is_a_copy(self):
        model = small()
        again = load_checkpoint(model.state_dict())
        with torch.no_grad():
            again.conv1.weight.zero_()
        assert model.conv1.weight.any()

    def test_into_a_given_model(self, tmp_path):
        model, other = small(), small().bfloat16().train()
        save_checkpoint(tmp_path / "m", model, {"a": 1})
        assert load_checkpoint(tmp_path / "m", other) is other
        assert other.training
        assert other.metadata == {"a": 1}
        assert torch.equal(other.conv1.weight, model.conv1.weight.bfloat16())

    @pytest.mark.parametrize("metadata", [{"config": 1}, {"format": "x"}, {"a": torch.zeros(1)}, {"a": {1, 2}}])
    def test_bad_metadata(self, tmp_path, metadata):
        with pytest.raises(ValueError, match="metadata must"):
            save_checkpoint(tmp_path / "m", lifter(width=8), metadata)
        assert not list(tmp_path.iterdir())


class TestAtomicity:
    @pytest.mark.parametrize("existed", [False, True])
    def test_a_failing_write_leaves_the_old_file_and_nothing_else(self, tmp_path, monkeypatch, existed):
        path = tmp_path / "m.safetensors"
        if existed:
            save_checkpoint(path, lifter(width=8), {"run": 1})
        before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

        def fail(tensors, filename, metadata):
            Path(filename).write_bytes(b"half of a fi")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoints, "save_file", fail)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(path, lifter(width=16), {"run": 2})
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before

    def test_an_interrupt_counts_as_well(self, tmp_path, monkeypatch):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path / "m", lifter(width=8))
        assert not list(tmp_path.iterdir())


class TestOfficialFiles:
    @pytest.mark.parametrize("legacy", [False, True])
    def test_bare(self, tmp_path, legacy):
        model = small(joints=16)
        torch.save(model.state_dict(), tmp_path / "m.pth", _use_new_zipfile_serialization=not legacy)
        again = load_checkpoint(tmp_path / "m.pth")
        assert again.config == model.config
        assert equal_states(again.state_dict(), model.state_dict())
        assert again.metadata == {"source": "official", "joint_order": "unknown"}

    def test_training_checkpoint(self, tmp_path):
        model = small()
        state = model.state_dict()
        optimizer = torch.optim.Adam(model.parameters())
        content = {
            "epoch": 210,
            "model": "pose_hrnet",
            "state_dict": prefixed(state, "module."),
            "best_state_dict": state,
            "perf": np.float64(0.75),
            "optimizer": optimizer.state_dict(),
        }
        torch.save(content, tmp_path / "checkpoint.pth")
        assert equal_states(load_checkpoint(tmp_path / "checkpoint.pth").state_dict(), state)
        del content["state_dict"]
        assert equal_states(load_checkpoint(content).state_dict(), state)

    def test_compiled_and_wrapped(self):
        state = small().state_dict()
        again = load_checkpoint(prefixed(state, "module._orig_mod."))
        assert equal_states(again.state_dict(), state)

    @pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
    def test_simple_baseline_of_every_depth(self, depth):
        with torch.device("meta"):
            wanted = simple_baseline(depth, 16).state_dict()
        state = {key: torch.zeros(()).expand(value.shape) for key, value in wanted.items()}
        layout = checkpoints.recognize(state)
        assert layout.config == {"architecture": "simple_baseline", "depth": depth, "joints": 16}

    def test_before_batchnorms_counted(self):
        model = simple_baseline(18)
        state = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
        again = load_checkpoint(state)
        assert equal_states(again.state_dict(), model.state_dict())


class TestMMPoseFiles:
    @pytest.mark.parametrize("head", ["keypoint_head.", "head."])
    @pytest.mark.parametrize("build", [small, lambda: simple_baseline(18, 16)])
    def test_roundtrip(self, tmp_path, head, build):
        model = build()
        # What mmengine keeps beside the weights of a published file.
        info = {"dataset_name": "h36m", "sigmas": np.ones(17, np.float32), "flip_indices": [0, 4, 5]}
        content = {"meta": {"dataset_meta": info, "epoch": 210}, "state_dict": in_mmpose(model.state_dict(), head)}
        torch.save(content, tmp_path / "m.pth")
        again = load_checkpoint(tmp_path / "m.pth")
        assert equal_states(again.state_dict(), model.state_dict())
        assert again.metadata == {"source": "mmpose", "joint_order": "unknown"}

    def test_numpy_paths_of_older_files(self, tmp_path):
        content = {"state_dict": small().state_dict(), "meta": {"sigmas": np.ones(17)}}
        torch.save(content, tmp_path / "new.pth", _use_new_zipfile_serialization=False)
        text = (tmp_path / "new.pth").read_bytes()
        assert b"numpy._core.multiarray" in text
        (tmp_path / "old.pth").write_bytes(text.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
        assert load_checkpoint(tmp_path / "old.pth").config["width"] == 4


class TestWeigqFiles:
    @pytest.mark.parametrize(("in_joints", "out_joints"), [(16, 16), (17, 17)])
    def test_roundtrip(self, tmp_path, in_joints, out_joints):
        model = lifter(in_joints, out_joints, width=32)
        model.fit_statistics(torch.rand(9, in_joints, 2), torch.randn(9, out_joints, 3))
        weights = {k: v for k, v in model.state_dict().items() if not k.startswith(("input_", "output_"))}
        content = {"epoch": 1, "lr": 0.001, "step": 9, "err": np.float32(40), "state_dict": weights, "optimizer": {}}
        torch.save(content, tmp_path / "ckpt_best.pth.tar")
        again = load_checkpoint(tmp_path / "ckpt_best.pth.tar")
        assert again.config == {**model.config, "dropout": 0.5}
        assert equal_states({key: again.state_dict()[key] for key in weights}, weights)
        assert torch.equal(again.input_std, torch.ones(2 * in_joints))
        assert not again.output_mean.any()
        assert "statistics" in again.metadata["warning"]
        assert again.metadata["source"] == "weigq"


class TestImageNetBackbones:
    def classification(self, **arguments) -> dict[str, Tensor]:
        state = {k: v for k, v in small(**arguments).state_dict().items() if not k.startswith("final_layer")}
        extra = (
            "incre_modules.0.0.conv1.weight",
            "downsamp_modules.0.0.weight",
            "final_layer.0.weight",
            "classifier.bias",
        )
        lower = ("stage4.0.fuse_layers.1.0.0.0.weight",)
        return {**state, **{key: torch.zeros(3) for key in (*extra, *lower)}}

    def test_hrnet_loads_all_but_the_heads(self, tmp_path):
        state = self.classification()
        torch.save(state, tmp_path / "hrnet.pth")
        model = small(supervise_stages=True)
        heads = {k: v.clone() for k, v in model.state_dict().items() if k.startswith(("final", "stage2_h", "stage3_h"))}
        load_checkpoint(tmp_path / "hrnet.pth", model)
        for key, value in model.state_dict().items():
            assert torch.equal(value, heads[key] if key in heads else state[key]), key
        assert model.metadata == {"source": "official classification backbone"}

    def test_resnet_loads_all_but_the_heads(self):
        donor, model = simple_baseline(18), simple_baseline(18)
        state = {k: v for k, v in donor.state_dict().items() if not k.startswith(("final_layer", "deconv"))}
        kept = model.final_layer.weight.clone()
        load_checkpoint({**state, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, model)
        assert torch.equal(model.layer4[1].conv2.weight, donor.layer4[1].conv2.weight)
        assert torch.equal(model.final_layer.weight, kept)

    def test_needs_a_model(self):
        with pytest.raises(CheckpointError, match=r"state dict: hrnet backbone .* no heatmap layer: .* model="):
            load_checkpoint(self.classification())

    def test_of_another_width(self):
        with pytest.raises(CheckpointError, match=r"of another shape \(transition1\.0\.0\.weight \[8, 256, 3, 3\] for"):
            load_checkpoint(self.classification(width=8), small())


class TestKeysThatDoNotFit:
    def test_missing_unexpected_and_misshapen_are_named(self):
        state = small().state_dict()
        del state["bn1.weight"]
        state["more"] = torch.zeros(1)
        state["conv2.weight"] = torch.zeros(2, 2)
        match = (
            r"recognised hrnet \(width 4, joints 17, modules \[1, 2, 1\], blocks 2, supervise_stages False\) under "
            r"official names.*: 1 missing \(bn1\.weight\); 1 unexpected \(more\); "
            r"1 of another shape \(conv2\.weight \[2, 2\] for \[64, 64, 3, 3\]\)"
        )
        with pytest.raises(CheckpointError, match=match):
            load_checkpoint(state)

    def test_only_ten_are_named_and_all_counted(self):
        state = {**small().state_dict(), **{f"extra{i:02}": torch.zeros(1) for i in range(25)}}
        with pytest.raises(CheckpointError, match=r"25 unexpected \(extra00, .*extra09, \.\.\.\)"):
            load_checkpoint(state)

    def test_a_model_of_another_width_is_left_alone(self):
        model = small()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(
            CheckpointError, match=r"final_layer\.weight \[17, 8, 1, 1\] for \[17, 4, 1, 1\]|of another shape"
        ):
            load_checkpoint(small(width=8).state_dict(), model)
        assert equal_states(model.state_dict(), before)

    def test_lifter_into_hrnet(self):
        with pytest.raises(CheckpointError, match=r"recognised lifter .*missing .*unexpected"):
            load_checkpoint(lifter(width=8).state_dict(), small())

    def test_half_an_hrnet(self):
        state = {key: value for key, value in small().state_dict().items() if not key.startswith("stage4")}
        with pytest.raises(CheckpointError, match=r"\d+ missing \(stage4\.0\.branches"):
            load_checkpoint(state)

    @pytest.mark.parametrize(
        ("content", "match"),
        [
            ({}, "no state dict"),
            ({"state_dict": {}}, "no state dict"),
            ({"epoch": 3, "lr": 0.1}, r"no state dict: the entries \['epoch', 'lr'\] are no weights"),
            ({"weight": torch.zeros(3)}, r"none of the known networks: 1 tensors, the first are \['weight'\]"),
            ({"layer1.0.conv1.weight": torch.zeros(1)}, "a ResNet of no known depth"),
        ],
    )
    def test_not_one_of_our_networks(self, content, match):
        with pytest.raises(CheckpointError, match=match):
            load_checkpoint(content)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


class TestBadFiles:
    """Each gives one error that names the file."""

    def refused(self, path: Path, match: str) -> None:
        with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: .*{match}"):
            load_checkpoint(path)

    @pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
    def test_malicious_pickle(self, tmp_path, write):
        path, mark = tmp_path / "m.pth", tmp_path / "executed"
        write({"state_dict": Malicious(mark)}, path)
        self.refused(path, "only tensors and plain values|not a checkpoint that can be read")
        assert not mark.exists()

    def test_malicious_pickle_says_what_it_wants(self, tmp_path):
        torch.save({"a": Malicious(tmp_path / "x")}, tmp_path / "m.pth")
        self.refused(tmp_path / "m.pth", r"it wants \S+, and only tensors and plain values are loaded")

    @pytest.mark.parametrize("content", [b"", b"\n", b"not weights at all, but some text", b"PK\x03\x04", bytes(100)])
    def test_not_a_checkpoint(self, tmp_path, content):
        path = tmp_path / "m.pth"
        path.write_bytes(content)
        self.refused(path, "the file is empty" if not content else "not a checkpoint that can be read")

    @pytest.mark.parametrize("share", [0.001, 0.01, 0.3, 0.999])
    @pytest.mark.parametrize("ours", [False, True])
    def test_truncated(self, tmp_path, share, ours):
        path = tmp_path / "m"
        save_checkpoint(path, lifter(width=64)) if ours else torch.save(lifter(width=64).state_dict(), path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        self.refused(path, "damaged safetensors" if ours else "not a checkpoint that can be read")

    def test_a_pickled_list(self, tmp_path):
        torch.save([torch.zeros(2)], tmp_path / "m.pth")
        self.refused(tmp_path / "m.pth", "holds a list, not a state dict")

    @pytest.mark.parametrize(
        ("texts", "match"),
        [
            ({"format": "hpe_fast/9"}, "has format 'hpe_fast/9'"),
            ({"format": "hpe_fast/1"}, "metadata is damaged: KeyError"),
            ({"format": "hpe_fast/1", "config": "{"}, "metadata is damaged"),
            ({"format": "hpe_fast/1", "config": "3"}, "metadata is damaged"),
            ({"format": "hpe_fast/1", "config": '{"architecture": "gan"}'}, "got 'gan'"),
            ({"format": "hpe_fast/1", "config": '{"architecture": "lifter"}'}, "of another shape"),
        ],
    )
    def test_bad_metadata_in_our_format(self, tmp_path, texts, match):
        save_file(lifter(width=8).state_dict(), tmp_path / "m", metadata=texts)
        self.refused(tmp_path / "m", match)

    def test_safetensors_of_others_are_recognised(self, tmp_path):
        model = small()
        save_file(model.state_dict(), tmp_path / "m", metadata={"author": "someone"})
        assert equal_states(load_checkpoint(tmp_path / "m").state_dict(), model.state_dict())

    def test_no_such_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
            load_checkpoint(tmp_path / "nowhere.pth")


def test_foreign_safetensors_have_a_format_of_their_own(tmp_path):
    """Other writers put {"format": "pt"} there."""
    model = lifter(width=8)
    save_file(model.state_dict(), tmp_path / "a.safetensors", metadata={"format": "pt"})
    assert load_checkpoint(tmp_path / "a.safetensors").config["width"] == 8


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t * float("nan"),
        lambda t: t.to(torch.complex64),
        lambda t: t.to(torch.int8),
        lambda t: t.to("meta"),
        lambda t: t.to_sparse(),
        lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    ],
)
def test_weights_that_are_no_real_numbers_are_refused(spoil):
    state = lifter(width=8).state_dict()
    state["w1.weight"] = spoil(state["w1.weight"])
    with pytest.raises(CheckpointError, match=r"1 that are no real numbers \(w1\.weight\)"):
        load_checkpoint(state)


def test_no_advice_to_unpickle_what_is_refused(tmp_path):
    (tmp_path / "junk.pth").write_bytes(b"\x80\x02junk")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "junk.pth")
    assert "weights_only" not in str(caught.value)
