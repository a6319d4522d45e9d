"""The loader: the right pixels, the same ones however they are batched, and errors that name the row."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import picture

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI exists for Linux only")

from hpe_fast.data.augment import NO_AUGMENTATION, OFFICIAL_AUGMENTATION, PAPER_AUGMENTATION, draw
from hpe_fast.data.dali import undecodable
from hpe_fast.data.loader import Batch, ImageLoader
from hpe_fast.data.store import DataError, PoseStore, PoseStoreWriter
from hpe_fast.skeleton import FLIP_PERMUTATION

EVERYTHING = replace(
    PAPER_AUGMENTATION, rotation=30.0, scale=0.2, flip_probability=0.5, occluders=2, occluder_probability=0.6
)
EXACT = replace(PAPER_AUGMENTATION, flip_probability=0.5)


@pytest.fixture(scope="module")
def store(store_path: Path) -> PoseStore:
    return PoseStore(store_path)


def samples(batches) -> dict[int, tuple]:
    """Everything about each sample, by row."""
    found = {}
    for batch in batches:
        values = [value for value in vars(batch).values() if value is not None]
        for i, row in enumerate(batch.rows.tolist()):
            found[row] = tuple(value[i].clone() for value in values)
    return found


def assert_same_samples(found: dict[int, tuple], want: dict[int, tuple]) -> None:
    assert found
    for row, values in found.items():
        for value, expected in zip(values, want[row], strict=True):
            torch.testing.assert_close(value, expected, rtol=0, atol=0, equal_nan=True)


# ---- pixels and labels


def test_without_augmentation_the_stored_pictures(store: PoseStore):
    loader = ImageLoader(store, 8)
    batches = list(loader.epoch())
    assert len(loader) == len(batches) == 3
    assert [len(batch.images) for batch in batches] == [8, 8, 4]
    assert torch.cat([batch.rows for batch in batches]).tolist() == list(range(20))
    for batch in batches:
        assert batch.images.dtype == torch.uint8
        assert batch.color is None
        assert batch.noise_std is None
        for i, row in enumerate(batch.rows.tolist()):
            np.testing.assert_array_equal(batch.images[i].numpy(), store.image(row))
        np.testing.assert_array_equal(batch.keypoints, store.pose2d[batch.rows])
        np.testing.assert_array_equal(batch.pose3d, store.pose3d[batch.rows])
        np.testing.assert_array_equal(batch.intrinsics, store.intrinsics[batch.rows])
        assert batch.weights.min() == 1


def moved_by_hand(picture: np.ndarray, matrix: np.ndarray, fill: int) -> np.ndarray:
    """Pixel by pixel, for maps that take pixels to pixels."""
    out = np.full_like(picture, fill)
    height, width = picture.shape[:2]
    y, x = np.mgrid[:height, :width]
    to = np.einsum("ij,jhw->ihw", matrix.astype(np.float64), np.stack([x, y, np.ones_like(x)]))
    np.testing.assert_array_equal(to, np.round(to))
    to_x, to_y = to.astype(int)
    inside = (to_x >= 0) & (to_x < width) & (to_y >= 0) & (to_y < height)
    out[to_y[inside], to_x[inside]] = picture[y[inside], x[inside]]
    return out


@pytest.mark.parametrize("size", [(64, 64), (51, 51), (40, 64)])
def test_turns_mirroring_and_shifts_move_the_very_pixels(make_store: Callable[..., Path], size: tuple[int, int]):
    store = PoseStore(make_store(size=size))
    kinds = set()
    for epoch in range(3):
        for batch in ImageLoader(store, 7, augmentation=EXACT, seed=4).epoch(epoch):
            rows = batch.rows.numpy()
            drawn = draw(EXACT, 4, epoch, rows, store.pose2d[rows], store.visible[rows], size, size)
            for i, row in enumerate(rows):
                want = moved_by_hand(store.image(row), drawn.matrix[i], 128)
                np.testing.assert_array_equal(batch.images[i].numpy(), want)
                kinds.add(drawn.turn[i].tobytes())
    assert len(kinds) == 6


def test_quarter_turn_is_that_of_numpy(store: PoseStore):
    turned = replace(NO_AUGMENTATION, quarter_turn_probability=1.0)
    clockwise = 0
    for batch in ImageLoader(store, 20, augmentation=turned).epoch():
        for i, row in enumerate(batch.rows.tolist()):
            sign = -1 if abs(float(batch.keypoints[i, 0, 0]) - (63 - store.pose2d[row, 0, 1])) < 1e-3 else 1
            np.testing.assert_array_equal(batch.images[i].numpy(), np.rot90(store.image(row), sign))
            clockwise += sign == -1
    assert 0 < clockwise < 20


@pytest.mark.parametrize(
    ("augmentation", "out"),
    [(OFFICIAL_AUGMENTATION, (64, 64)), (EVERYTHING, (64, 64)), (NO_AUGMENTATION, (32, 48)), (NO_AUGMENTATION, 100)],
)
def test_linear_sampling_agrees_with_opencv(store: PoseStore, augmentation, out):
    augmentation = replace(augmentation, occluders=0)
    loader = ImageLoader(store, 20, augmentation=augmentation, image_size=out)
    (batch,) = loader.epoch(1)
    assert tuple(batch.images.shape) == (20, *loader.image_size, 3)
    rows = np.arange(20)
    drawn = draw(augmentation, 0, 1, rows, store.pose2d, store.visible, (64, 64), loader.image_size)
    for i in range(20):
        size, grey = loader.image_size[::-1], (augmentation.fill,) * 3
        want = cv2.warpAffine(store.image(i), drawn.matrix[i], size, flags=cv2.INTER_LINEAR, borderValue=grey)
        difference = np.abs(want.astype(int) - batch.images[i].numpy())
        assert np.quantile(difference, 0.99) <= 2
    order = np.where(drawn.flip[:, None], FLIP_PERMUTATION, np.arange(17))
    points = np.einsum("bij,bpj->bpi", drawn.matrix[:, :, :2], store.pose2d) + drawn.matrix[:, None, :, 2]
    np.testing.assert_allclose(batch.keypoints, points[rows[:, None], order], atol=1e-3)


def test_labels_on_the_way_stay_consistent(store: PoseStore):
    for batch in ImageLoader(store, 6, augmentation=EVERYTHING, image_size=128).epoch():
        camera = batch.intrinsics.double()[:, None]
        projected = batch.pose3d[..., :2].double() / batch.pose3d[..., 2:] * camera[..., :2] + camera[..., 2:]
        torch.testing.assert_close(projected.float(), batch.keypoints, rtol=0, atol=2e-3)


def test_occluders_are_painted_over_joints(store: PoseStore):
    augmentation = replace(NO_AUGMENTATION, occluders=1, occluder_probability=1.0, occluder_size=(0.1, 0.3))
    (batch,) = ImageLoader(store, 20, augmentation=augmentation).epoch()
    rows = np.arange(20)
    drawn = draw(augmentation, 0, 0, rows, store.pose2d, store.visible, (64, 64), (64, 64))
    for i in range(20):
        (x, y), (width, height) = drawn.occluder_center[i, 0], drawn.occluder_shape[i, 0]
        left, top = np.round([x + 0.5 - width / 2, y + 0.5 - height / 2]).astype(int)
        want = store.image(i).copy()
        want[max(top, 0) : top + int(height), max(left, 0) : left + int(width)] = drawn.occluder_color[i]
        np.testing.assert_array_equal(batch.images[i].numpy(), want)


def test_a_cameras_orientation_tag_does_not_turn_the_picture(make_store: Callable[..., Path]):
    data = picture(0, (64, 64))
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + bytes.fromhex("0112000300000001000600000000 0000")
    tagged = data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]
    plain = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    turned = cv2.imdecode(np.frombuffer(tagged, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    np.testing.assert_array_equal(turned, np.rot90(plain, -1))  # the tag is one
    (batch,) = ImageLoader(PoseStore(make_store(count=1, jpegs=[tagged])), 1).epoch()
    np.testing.assert_array_equal(batch.images[0], plain)
    np.testing.assert_array_equal(PoseStore(make_store(count=1, jpegs=[tagged])).image(0), plain)


def test_color_and_noise_are_left_to_the_device(store: PoseStore):
    (batch,) = ImageLoader(store, 20, augmentation=PAPER_AUGMENTATION, seed=3).epoch(2)
    drawn = draw(PAPER_AUGMENTATION, 3, 2, np.arange(20), store.pose2d, store.visible, (64, 64), (64, 64))
    np.testing.assert_array_equal(batch.color, drawn.color)
    np.testing.assert_array_equal(batch.noise_std, drawn.noise_std)
    assert batch.sample_ids.tolist() == list(range(40, 60))


def test_batches_keep_their_pixels_while_later_ones_are_made(store: PoseStore):
    loader = ImageLoader(store, 4, augmentation=EVERYTHING)
    kept = list(loader.epoch())
    copies = [batch.images.clone() for batch in kept]
    list(loader.epoch(1))
    del loader
    for batch, copied in zip(kept, copies, strict=True):
        assert torch.equal(batch.images, copied)


# ---- the same samples however they are asked for


@pytest.fixture(scope="module")
def reference(store: PoseStore) -> dict[int, tuple]:
    return samples(ImageLoader(store, 10, augmentation=EVERYTHING, seed=9, shuffle=True).epoch(3))


@pytest.mark.parametrize("options", [{"batch_size": 7}, {"batch_size": 20, "threads": 1}, {"batch_size": 1}])
def test_same_pixels_at_any_batch_size_and_thread_count(store: PoseStore, reference, options):
    found = samples(ImageLoader(store, augmentation=EVERYTHING, seed=9, shuffle=True, **options).epoch(3))
    assert found.keys() == reference.keys()
    assert_same_samples(found, reference)


@pytest.mark.parametrize("world", [2, 3])
def test_same_pixels_on_any_number_of_ranks(store: PoseStore, reference, world: int):
    loaders = [
        ImageLoader(store, 4, augmentation=EVERYTHING, seed=9, shuffle=True, rank=rank, world=world)
        for rank in range(world)
    ]
    assert len({len(loader) for loader in loaders}) == 1
    parts = [list(loader.epoch(3)) for loader in loaders]
    assert len({len(part) for part in parts}) == 1
    rows = [row for part in parts for batch in part for row in batch.rows.tolist()]
    assert set(rows) == set(range(20))
    assert len(rows) == -(-20 // world) * world
    for part in parts:
        assert_same_samples(samples(part), reference)


@pytest.mark.parametrize("drop_last", [False, True])
def test_two_ranks_share_a_batch_of_one(store: PoseStore, drop_last: bool):
    options = {"seed": 2, "shuffle": True, "drop_last": drop_last}
    whole = [set(batch.rows.tolist()) for batch in ImageLoader(store, 6, **options).epoch()]
    parts = [ImageLoader(store, 3, rank=rank, world=2, **options).epoch() for rank in (0, 1)]
    assert [set(a.rows.tolist()) | set(b.rows.tolist()) for a, b in zip(*parts, strict=True)] == whole
    assert len(whole) == (3 if drop_last else 4)


def test_resuming_gives_the_rest_of_the_epoch(store: PoseStore):
    options = {"augmentation": EVERYTHING, "seed": 1, "shuffle": True}
    whole = list(ImageLoader(store, 6, **options).epoch(5))
    for start in range(5):
        rest = list(ImageLoader(store, 6, **options).epoch(5, start))
        assert len(rest) == 4 - start
        for batch, want in zip(rest, whole[start:], strict=True):
            assert torch.equal(batch.images, want.images)
            assert torch.equal(batch.rows, want.rows)
            assert torch.equal(batch.sample_ids, want.sample_ids)


def test_epochs_differ_in_order_and_pixels(store: PoseStore):
    loader = ImageLoader(store, 20, augmentation=PAPER_AUGMENTATION, shuffle=True)
    first, second, again = (next(iter(loader.epoch(epoch))) for epoch in (0, 1, 0))
    assert first.rows.tolist() != second.rows.tolist()
    assert torch.equal(first.images, again.images)
    assert len(set(first.sample_ids.tolist()) | set(second.sample_ids.tolist())) == 40
    by_row = samples([first]), samples([second])
    assert any(not torch.equal(by_row[0][row][0], by_row[1][row][0]) for row in range(20))


def test_drop_last(store: PoseStore):
    loader = ImageLoader(store, 8, drop_last=True, world=2)
    assert len(loader) == 1
    assert [len(batch.images) for batch in loader.epoch()] == [8]


def test_an_epoch_can_be_left_in_the_middle(store: PoseStore):
    loader = ImageLoader(store, 3, augmentation=EVERYTHING)
    left = loader.epoch()
    next(left)
    begun = len(loader._feed.pending)
    unread, feed = len(loader._feed.batches), loader._feed
    loader.epoch(1)
    assert (unread, begun, len(feed.pending)) == (5, 1, 1)  # the rest was not read to get there
    whole = samples(loader.epoch())
    assert_same_samples(whole, samples(ImageLoader(store, 20, augmentation=EVERYTHING).epoch()))
    with pytest.raises(RuntimeError, match="ended by another call"):
        next(left)


def test_the_next_batch_is_under_way_while_this_one_is_used(store: PoseStore):
    loader = ImageLoader(store, 5)
    assert loader.wait_seconds == 0
    batches = loader.epoch()
    next(batches)
    assert len(loader._feed.pending) == 1
    waited = loader.wait_seconds
    assert waited > 0
    list(batches)
    assert loader.wait_seconds > waited


def test_a_loader_that_is_no_longer_used_gives_its_memory_back(store: PoseStore):
    loader = ImageLoader(store, 4)
    batches = loader.epoch()
    next(batches)
    pipeline = weakref.ref(loader._pipeline)
    gc.disable()
    try:
        del loader, batches
        assert pipeline() is None
    finally:
        gc.enable()


# ---- what can be wrong


@pytest.fixture
def broken(make_store: Callable[..., Path]) -> PoseStore:
    """Row 9 ends early, row 13 has no picture after its header; checksums are right: they were stored like that."""
    jpegs = [picture(i, (64, 64)) for i in range(20)]
    jpegs[9] = jpegs[9][: len(jpegs[9]) // 2]
    jpegs[13] = jpegs[13][: jpegs[13].index(b"\xff\xda")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PoseStoreWriter, "_checked_jpeg", lambda writer, jpeg, where: jpeg)
        return PoseStore(make_store(jpegs=jpegs))


def take(batches, into: list[Batch]) -> None:
    for batch in batches:
        into.append(batch)


@pytest.mark.parametrize("seen_by", ["the store", "DALI"])
def test_a_picture_that_cannot_be_decoded_is_named_at_its_batch(broken: PoseStore, monkeypatch, seen_by: str):
    if seen_by == "DALI":  # which crashes now and then where one thread refuses a picture and another is at work
        monkeypatch.setattr("hpe_fast.data.store.jpeg_problem", lambda data, size: None)
    loader = ImageLoader(broken, 4, augmentation=PAPER_AUGMENTATION, threads=1)
    for _ in range(2):  # the loader can be used again
        got: list[Batch] = []
        with pytest.raises(
            DataError, match=r"poses\.h5: row 9 \(Bär_9\.jpg\): (cannot be decoded|a JPEG without an end.*)$"
        ):
            take(loader.epoch(), got)
        assert [batch.rows.tolist() for batch in got] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(DataError, match=r"row 13 \(Bär_13\.jpg\)"):
        take(loader.epoch(0, start=3), [])
    assert next(loader.epoch(0, start=4)).rows.tolist() == [16, 17, 18, 19]


def test_a_damaged_file_is_named_at_its_batch(make_store: Callable[..., Path]):
    path = make_store()
    store = PoseStore(path)
    with open(path, "r+b") as file:
        file.seek(store._base + int(store.offset[9]) + 300)
        file.write(b"\0\1\2\3\4\5\6\7")
    loader = ImageLoader(store, 4)
    for _ in range(2):
        got: list[Batch] = []
        with pytest.raises(DataError, match=r"poses\.h5: row 9 \(Bär_9\.jpg\): checksum"):
            take(loader.epoch(), got)
        assert [batch.rows.tolist() for batch in got] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert sorted(undecodable(store, np.arange(20))) == [9]


def test_leaving_an_epoch_before_a_bad_picture(broken: PoseStore):
    loader = ImageLoader(broken, 4)
    batches = loader.epoch()
    next(batches)
    next(batches)
    assert next(loader.epoch()).rows.tolist() == [0, 1, 2, 3]


def test_skip_bad_leaves_them_out_and_lists_them(broken: PoseStore):
    loader = ImageLoader(broken, 5, skip_bad=True)
    assert sorted(loader.skipped) == [9, 13]
    assert "row 13 (Bär_13.jpg): a JPEG without an end" in loader.skipped[13]
    assert len(loader) == 4
    rows = torch.cat([batch.rows for batch in loader.epoch()]).tolist()
    assert rows == [row for row in range(20) if row not in (9, 13)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an int and at least 1, got 0"),
        ({"threads": 0}, "threads must be an int and at least 1"),
        ({"rank": 2, "world": 2}, r"rank must be in \[0, 2\), got 2"),
        ({"image_size": (0, 5)}, r"image_size must be a positive int or \(height, width\), got \(0, 5\)"),
        ({"device": "mps"}, "device must be auto, cpu, cuda or cuda:N, got 'mps'"),
        ({"batch_size": 21, "drop_last": True}, "batch_size 21 is too large: .* 20 usable rows for 1 ranks"),
    ],
)
def test_arguments_out_of_range(store: PoseStore, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ImageLoader(store, **{"batch_size": 4, **options})


def test_epoch_arguments_out_of_range(store: PoseStore):
    loader = ImageLoader(store, 4)
    with pytest.raises(ValueError, match="epoch must be >= 0, got -1"):
        loader.epoch(-1)
    with pytest.raises(ValueError, match=r"start must be in \[0, 5\], got 6"):
        loader.epoch(0, 6)


def test_poses_only(make_store: Callable[..., Path]):
    with pytest.raises(ValueError, match="poses only"):
        ImageLoader(PoseStore(make_store(jpegs=False)), 4)


def test_without_dali(store: PoseStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(ImportError, match="needs NVIDIA DALI: pip install nvidia-dali-cuda130"):
        ImageLoader(store, 4)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("augmentation", [NO_AUGMENTATION, EXACT, EVERYTHING])
def test_the_gpu_sees_what_the_cpu_sees(store: PoseStore, augmentation):
    on_cpu = samples(ImageLoader(store, 8, augmentation=augmentation, shuffle=True).epoch(1))
    loader = ImageLoader(store, 8, augmentation=augmentation, shuffle=True, device="cuda")
    on_gpu = samples(loader.epoch(1))
    assert on_gpu.keys() == on_cpu.keys()
    for row, values in on_gpu.items():
        for value, want in zip(values, on_cpu[row], strict=True):
            assert value.device.type == "cuda"
            if value.dtype == torch.uint8:
                assert (value.cpu().int() - want.int()).abs().float().mean() < 1
            else:
                assert torch.equal(value.cpu(), want)


def test_preview(store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    from hpe_fast.data import preview

    sheet = preview.preview(preview.PreviewConfig(store_path, augmentation="none", rows=2, columns=3))
    assert sheet.shape == (2 * 64, 3 * 64, 3)
    (batch,) = ImageLoader(PoseStore(store_path), 20, shuffle=True).epoch()
    first = np.abs(sheet[:64, :64].astype(int) - batch.images[0].numpy()).max(axis=2)
    assert 0.01 < (first > 0).mean() < 0.9  # lines on top of the picture
    x, y = np.round(batch.keypoints[0, 16].numpy()).astype(int)
    assert sheet[y, x].tolist() == list(preview._RED)
    out = tmp_path / "sheet.png"
    monkeypatch.setattr(sys, "argv", ["preview", str(store_path), "--out", str(out), "--image-size", "96"])
    preview.main()
    assert str(out) in capsys.readouterr().out
    assert cv2.imread(str(out)).shape == (6 * 96, 8 * 96, 3)
    with pytest.raises(ValueError, match=r"augmentation must be one of .*got 'all'"):
        preview.preview(preview.PreviewConfig(store_path, augmentation="all"))
