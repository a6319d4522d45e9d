"""Several stores as one: rows in order, bytes untouched, geometry exact where pictures change their size."""

import numpy as np
import pytest

from hpe_fast.convert import main
from hpe_fast.data.merging import merge_stores, rows_of
from hpe_fast.data.store import DataError, PoseStore, PoseStoreWriter


@pytest.fixture
def two(make_store, tmp_path):
    stores = [make_store(count=5), make_store(count=3)]
    return [store.rename(tmp_path / f"{i}.h5") for i, store in enumerate(stores)]


def rows(path):
    with PoseStore(path) as store:
        return list(rows_of(store, range(len(store))))


def same(a, b, names):
    return all(np.array_equal(a[name], b[name], equal_nan=a[name].dtype.kind == "f") for name in names)


def test_rows_come_in_order_byte_for_byte(two, tmp_path):
    merged = rows(merge_stores(two, tmp_path / "all.h5"))
    expected = [row for path in two for row in rows(path)]
    assert len(merged) == len(expected)
    for a, b in zip(merged, expected, strict=True):
        assert same(a, b, ["pose2d", "visible", "pose3d", "intrinsics"])
        assert all(a[name] == b[name] for name in ("jpeg", "subject", "action", "camera", "frame", "name", "recipe"))


def test_limit_takes_the_first_of_each(two, tmp_path):
    merged = rows(merge_stores(two, tmp_path / "some.h5", limit=2))
    assert [row["jpeg"] for row in merged] == [row["jpeg"] for path in two for row in rows(path)[:2]]
    assert len(rows(merge_stores(two, tmp_path / "most.h5", limit=4))) == 4 + 3


@pytest.mark.parametrize("size", [32, 33, 64, 100])
def test_cameras_still_project_onto_the_joints(two, tmp_path, size):
    with PoseStore(merge_stores(two, tmp_path / "all.h5", size=size)) as store:
        assert store.image_size == (size, size)
        assert store.image(0).shape == (size, size, 3)
        projected = store.pose3d[..., :2] / store.pose3d[..., 2:] * store.intrinsics[:, None, :2]
        np.testing.assert_allclose(projected + store.intrinsics[:, None, 2:], store.pose2d, atol=2e-3)
        # pixel areas keep their place: corners of the picture go to corners
        old = np.concatenate([PoseStore(path).pose2d for path in two])
        np.testing.assert_allclose((store.pose2d + 0.5) / size, (old + 0.5) / 64, atol=1e-5)


def test_resized_pictures_show_the_same(two, tmp_path):
    small = PoseStore(merge_stores(two, tmp_path / "all.h5", size=32, quality=100)).image(0).astype(float)
    large = PoseStore(two[0]).image(0).astype(float)
    assert np.abs(small - large.reshape(32, 2, 32, 2, 3).mean((1, 3))).mean() < 4


def test_occlusion_is_kept_where_all_know_it(tmp_path):
    def store(name, occluded):
        with PoseStoreWriter(tmp_path / name, (8, 8)) as writer:
            writer.append(None, np.zeros((17, 2)), np.ones(17), occluded=occluded)
        return tmp_path / name

    known, unknown = store("known.h5", np.arange(17) % 2), store("unknown.h5", None)
    both = PoseStore(merge_stores([known, known], tmp_path / "a.h5"))
    assert both.occluded.tolist() == [(np.arange(17) % 2).tolist()] * 2
    assert PoseStore(merge_stores([known, unknown], tmp_path / "b.h5")).occluded is None


def test_what_does_not_fit_is_refused_and_nothing_is_left(two, make_store, tmp_path):
    other = make_store(count=2, size=(48, 48))
    out = tmp_path / "out" / "all.h5"
    with PoseStoreWriter(tmp_path / "poses.h5", (64, 64)) as writer:
        writer.append(None, np.zeros((17, 2)), np.ones(17))
    with PoseStoreWriter(tmp_path / "wide.h5", (64, 96)) as writer:
        writer.append(None, np.zeros((17, 2)), np.ones(17))
    cases = [
        ({"sources": []}, "at least one pose store"),
        ({"sources": [*two, other]}, "48 x 48.*give a size"),
        ({"sources": [two[0], tmp_path / "poses.h5"]}, "one has pictures, the other has none"),
        ({"sources": [tmp_path / "wide.h5"], "size": 32}, "only square .* 64 x 96"),
        ({"sources": two, "size": 0}, r"size must be in 1\.\.16384, got 0"),
        ({"sources": two, "quality": 101}, "quality must be"),
        ({"sources": two, "limit": 0}, "limit must be"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            merge_stores(**arguments, destination=out)
    damaged = bytearray(two[0].read_bytes())
    with PoseStore(two[0]) as store:
        damaged[store._base + int(store.offset[3]) + 40] ^= 255
    (tmp_path / "damaged.h5").write_bytes(damaged)
    with pytest.raises(DataError, match="row 3"):
        merge_stores([tmp_path / "damaged.h5"], out)
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_command_line(two, tmp_path, capsys):
    code = main(["merge", *map(str, two), "--out", str(tmp_path / "all.h5"), "--size", "32"])
    assert code == 1  # the random people here have thighs of a metre
    assert "rows        8 with pictures of 32x32 pixels" in capsys.readouterr().out
    assert main(["merge", str(tmp_path / "none.h5"), "--out", str(tmp_path / "x.h5")]) == 2
    assert "none.h5: no such file" in capsys.readouterr().err


def test_many_stores_need_few_open_files(make_store, tmp_path):
    """A corpus of 200,000 pictures has 4,167 parts."""
    import resource

    sources = [make_store(count=2)] * 100
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (60, hard))
    try:
        path = merge_stores(sources, tmp_path / "all.h5")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(PoseStore(path)) == 200
