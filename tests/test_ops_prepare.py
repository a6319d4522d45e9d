"""prepare_images: the arithmetic, and noise that belongs to a sample and not to its batch or device."""

import math

import numpy as np
import ops_restated as restated
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ops_render import devices

from hpe_fast.ops import IMAGENET, PAPER_NORMALIZATION, Normalization, prepare_images, reference

IMAGE_DTYPES = [torch.float32, torch.float16, torch.bfloat16]
UNIT = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
TOLERANCE = {torch.float32: (1e-5, 2e-6), torch.float16: (1e-3, 1e-4), torch.bfloat16: (8e-3, 1e-4)}


def twin(images, normalization=IMAGENET, *, noise_std=None, color=None, seed=0, sample_ids=None, dtype=torch.float32):
    if isinstance(noise_std, float):
        noise_std = torch.full((len(images),), noise_std, device=images.device)
    if sample_ids is None:
        sample_ids = torch.arange(len(images), device=images.device)
    return reference.prepare_images(
        images, color, noise_std, sample_ids, list(normalization.mean), list(normalization.std), seed, dtype
    )


prepares = pytest.mark.parametrize("prepare", [prepare_images, twin], ids=["operator", "twin"])


def some_images(*shape, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=generator).to(device)


@devices
@prepares
class TestArithmetic:
    def test_every_byte(self, prepare, device):
        images = torch.arange(256, dtype=torch.uint8, device=device).view(1, 16, 16, 1).expand(1, 16, 16, 3)
        out = prepare(images.contiguous(), IMAGENET).double().cpu().numpy()
        pixels = np.arange(256).reshape(16, 16) / 255
        for channel, (mean, std) in enumerate(zip(IMAGENET.mean, IMAGENET.std, strict=True)):
            np.testing.assert_allclose(out[0, channel], (pixels - mean) / std, rtol=1e-5, atol=2e-6)

    def test_paper_normalization(self, prepare, device):
        out = prepare(torch.tensor([[[[0, 128, 255]]]], dtype=torch.uint8, device=device), PAPER_NORMALIZATION)
        assert out.flatten().tolist() == pytest.approx([-1, 0, 255 / 128 - 1], abs=1e-6)

    def test_layout(self, prepare, device):
        out = prepare(some_images(2, 5, 7, device=device))
        assert out.shape == (2, 3, 5, 7)
        assert out.is_contiguous(memory_format=torch.channels_last)

    def test_colour_matrix_mixes_and_clamps(self, prepare, device):
        images = torch.tensor([[[[10, 20, 30]]]] * 2, dtype=torch.uint8, device=device)
        rows = [[0, 1, 0, 5], [0, 0, 0, -7], [9, 9, 0, 0]]
        color = torch.tensor([rows, [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]], dtype=torch.float32, device=device)
        out = prepare(images, UNIT, color=color).flatten(1) * 255
        assert out[0].tolist() == pytest.approx([25, 0, 255], abs=1e-4)
        assert out[1].tolist() == pytest.approx([10, 20, 30], abs=1e-4)

    def test_empty_and_thin_pictures(self, prepare, device):
        for shape in ((0, 4, 5), (2, 0, 5), (2, 1, 1), (1, 1, 3)):
            out = prepare(some_images(*shape, device=device), noise_std=0.1)
            assert out.shape == (shape[0], 3, *shape[1:])
            assert out.isfinite().all()

    def test_strided_pictures(self, prepare, device):
        images = some_images(4, 9, 12, device=device)
        for view in (images[::2], images[:, :, 1:7], images.flip(3), images.permute(0, 2, 1, 3)):
            assert torch.equal(prepare(view, noise_std=0.2), prepare(view.contiguous(), noise_std=0.2))


@devices
@prepares
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    dtype=st.sampled_from(IMAGE_DTYPES),
    colored=st.booleans(),
    noisy=st.booleans(),
    seed=st.integers(0, 2**63 - 1),
    sample=st.integers(-(2**63), 2**63 - 8),
)
@settings(max_examples=40, deadline=None)
def test_any_case_agrees_with_the_restatement(prepare, device, shape, dtype, colored, noisy, seed, sample):
    generator = torch.Generator().manual_seed(seed)
    images, batch = some_images(*shape, seed=seed % 1000), shape[0]
    options = {}
    if colored:
        options["color"] = torch.eye(3, 4) + 0.2 * torch.randn(batch, 3, 4, generator=generator)
        options["color"][..., 3] *= 100
    if noisy:
        options["noise_std"] = torch.rand(batch, generator=generator)
        options["sample_ids"] = torch.arange(sample, sample + batch)
    wanted = images.double().numpy()
    if colored:
        color = options["color"].double().numpy()
        wanted = np.einsum("bij,bhwj->bhwi", color[..., :3], wanted) + color[:, None, None, :, 3]
        wanted = wanted.clip(0, 255)
    wanted = wanted / 255
    if noisy:
        for index in np.ndindex(*wanted.shape):
            element = (index[1] * shape[2] + index[2]) * 3 + index[3]
            wanted[index] += options["noise_std"][index[0]].item() * restated.normal(seed, sample + index[0], element)
    wanted = (wanted - IMAGENET.mean) / IMAGENET.std
    on_device = {name: value.to(device) for name, value in options.items()}
    got = prepare(images.to(device), **on_device, seed=seed, dtype=dtype)
    assert got.dtype == dtype
    rtol, atol = TOLERANCE[dtype]
    wanted = torch.from_numpy(wanted).permute(0, 3, 1, 2)
    torch.testing.assert_close(got.double().cpu(), wanted, rtol=rtol, atol=10 * atol)


def test_philox_gives_the_published_numbers():
    """Known answers of Random123 (Salmon et al., SC 2011), ``philox4x32 10``."""
    full, pi = 0xFFFFFFFF, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    cases = [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((full,) * 4, (full, full), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (pi, (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ]
    for counter, key, wanted in cases:
        assert restated.philox(counter, key) == wanted
        words = reference._philox([torch.tensor(word) for word in counter], key[0] | key[1] << 32)
        assert tuple(word.item() for word in words) == wanted


@devices
@prepares
class TestNoise:
    def noise(self, prepare, batch=1, size=64, device="cpu", **options):
        """Noise of pictures in grey, N(0, 1) [B, 3, H, W]."""
        grey = torch.full((batch, size, size, 3), 128, dtype=torch.uint8, device=device)
        return (prepare(grey, UNIT, noise_std=1.0, **options) - 128 / 255).cpu()

    def test_it_is_normal(self, prepare, device):
        noise = self.noise(prepare, 8, 128, device).double().flatten()
        count = noise.numel()
        assert abs(noise.mean()) < 4 / math.sqrt(count)
        assert abs(noise.std() - 1) < 4 / math.sqrt(2 * count)
        assert abs((noise**3).mean()) < 4 * math.sqrt(15 / count)
        assert abs((noise**4).mean() - 3) < 4 * math.sqrt(96 / count)
        assert 4 < noise.abs().max() < 6.7

    def test_elements_and_channels_are_independent(self, prepare, device):
        noise = self.noise(prepare, 2, 128, device).double().flatten(2)
        flat = noise.flatten(0, 1)
        correlation = torch.corrcoef(flat) - torch.eye(6)
        assert correlation.abs().max() < 5 / 128
        assert abs((flat[:, 1:] * flat[:, :-1]).mean()) < 5 / 300

    def test_a_sample_is_the_same_in_every_batch(self, prepare, device):
        ids = torch.tensor([7, -3, 2**40 + 1, 7], device=device)
        noise = self.noise(prepare, 4, device=device, sample_ids=ids, seed=3)
        for i in range(4):
            assert torch.equal(noise[i], self.noise(prepare, 1, device=device, sample_ids=ids[i : i + 1], seed=3)[0])
        assert torch.equal(noise[0], noise[3])
        assert not torch.equal(noise[0], noise[1])

    def test_a_wider_batch_does_not_matter_in_any_dtype(self, prepare, device):
        images = some_images(3, 17, 23, device=device)
        for dtype in IMAGE_DTYPES:
            together = prepare(images, noise_std=0.1, sample_ids=torch.tensor([5, 6, 7], device=device), dtype=dtype)
            alone = prepare(images[2:], noise_std=0.1, sample_ids=torch.tensor([7], device=device), dtype=dtype)
            assert torch.equal(together[2:], alone)

    def test_seeds_and_samples_differ_in_all_their_bits(self, prepare, device):
        seen = [self.noise(prepare, size=8, device=device, seed=seed) for seed in (0, 1, 2**32, 2**62)]
        for sample in (1, 2**31, 2**32, -1):
            ids = torch.tensor([sample], device=device)
            seen.append(self.noise(prepare, size=8, device=device, sample_ids=ids))
        for i, a in enumerate(seen):
            for b in seen[:i]:
                assert not torch.equal(a, b)
                assert abs((a * b).mean()) < 5 / math.sqrt(a.numel())

    def test_each_sample_has_its_own_strength(self, prepare, device):
        images = torch.full((3, 32, 32, 3), 128, dtype=torch.uint8, device=device)
        out = prepare(images, UNIT, noise_std=torch.tensor([0.0, 0.1, 0.4], device=device)) - 128 / 255
        assert out[0].abs().max() < 1e-6
        assert out[1].std().item() == pytest.approx(0.1, rel=0.05)
        assert out[2].std().item() == pytest.approx(0.4, rel=0.05)

    def test_no_noise_is_no_noise(self, prepare, device):
        images = some_images(2, 5, 5, device=device)
        assert torch.equal(prepare(images, noise_std=0.0), prepare(images))


@devices
def test_operator_and_twin_draw_the_same_numbers(device):
    images = some_images(2, 100, 101, device=device)
    ids = torch.tensor([2**33 + 5, 12], device=device)
    got = prepare_images(images, noise_std=1.0, seed=2**35 + 7, sample_ids=ids)
    wanted = twin(images, noise_std=1.0, seed=2**35 + 7, sample_ids=ids)
    assert (got - wanted).abs().max() < 5e-5  # 1e-5 of the noise, divided by std 0.225


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cpu_and_cuda_draw_the_same_numbers():
    images = some_images(3, 64, 65)
    on_cpu = prepare_images(images, UNIT, noise_std=1.0, seed=11)
    on_cuda = prepare_images(images.cuda(), UNIT, noise_std=1.0, seed=11).cpu()
    torch.testing.assert_close(on_cuda, on_cpu, rtol=3e-7, atol=3e-7)  # the last addition may be fused on one side


def test_threads_and_runs_do_not_change_a_bit():
    images, before = some_images(16, 64, 64), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 4, 4):
            torch.set_num_threads(threads)
            results.append(prepare_images(images, noise_std=0.3, color=torch.eye(3, 4).repeat(16, 1, 1)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


class TestBadInput:
    images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)

    def test_images(self):
        with pytest.raises(TypeError, match=r"images must be uint8, got torch\.float32"):
            prepare_images(self.images.float())
        with pytest.raises(TypeError, match=r"images must be a torch\.Tensor, got ndarray"):
            prepare_images(self.images.numpy())
        with pytest.raises(ValueError, match=r"images must have shape \[B, H, W, 3\], got \[2, 3, 8, 8\]"):
            prepare_images(self.images.permute(0, 3, 1, 2))
        with pytest.raises(TypeError, match=r"dtype must be float32, float16 or bfloat16, got torch\.float64"):
            prepare_images(self.images, dtype=torch.float64)
        with pytest.raises(TypeError, match="normalization must be a Normalization, got tuple"):
            prepare_images(self.images, ((0, 0, 0), (1, 1, 1)))

    def test_noise(self):
        for bad in (-0.1, math.nan, math.inf, "a"):
            with pytest.raises(ValueError, match="noise_std must be a number >= 0"):
                prepare_images(self.images, noise_std=bad)
        with pytest.raises(ValueError, match=r"noise_std must have shape \[2\], got \[3\]"):
            prepare_images(self.images, noise_std=torch.zeros(3))
        with pytest.raises(TypeError, match=r"sample_ids must be int64, got torch\.int32"):
            prepare_images(self.images, noise_std=0.1, sample_ids=torch.zeros(2, dtype=torch.int32))
        with pytest.raises(ValueError, match=r"sample_ids must have shape \[2\], got \[1\]"):
            prepare_images(self.images, noise_std=0.1, sample_ids=torch.zeros(1, dtype=torch.int64))
        for bad in (-1, 2**63, 1.5):
            with pytest.raises(ValueError, match=r"seed must be in 0\.\.2\*\*63-1"):
                prepare_images(self.images, seed=bad)

    def test_color(self):
        with pytest.raises(ValueError, match=r"color must have shape \[2, 3, 4\], got \[3, 4\]"):
            prepare_images(self.images, color=torch.zeros(3, 4))
        with pytest.raises(ValueError, match=r"color must be on the device of images \(cpu\), got meta"):
            prepare_images(self.images, color=torch.zeros(2, 3, 4, device="meta"))
        with pytest.raises(ValueError, match="color must not require grad"):
            prepare_images(self.images, color=torch.zeros(2, 3, 4, requires_grad=True))
