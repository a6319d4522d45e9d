"""Each layout, written small by dataset_trees, converted and compared with what was put in."""

import json
import pickle

import dataset_trees as trees
import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpe_fast.data.converters import ConvertOptions, convert, detect_layout
from hpe_fast.data.converters.cameras import load_cameras, rotation_of_quaternion
from hpe_fast.data.converters.coco import to_h36m
from hpe_fast.data.converters.table import choose_evenly, held_out_subjects
from hpe_fast.data.schema import DataError
from hpe_fast.data.store import PoseStore

SMALL = ConvertOptions(size=128, quality=100, workers=2)


def converted(layout, source, folder, options=SMALL, **own):
    assert detect_layout(source) == layout
    files = convert(layout, source, folder / "out", options, progress=False, **own)
    assert sorted(file.name for file in (folder / "out").iterdir()) == ["train.h5", "valid.h5"]
    return PoseStore(files["train"]), PoseStore(files["valid"])


def projected(store):
    pose3d, camera = store.pose3d.astype(float), store.intrinsics.astype(float)[:, None]
    return pose3d[..., :2] / pose3d[..., 2:] * camera[..., :2] + camera[..., 2:]


def assert_labels_lie_on_pixels(store, row, pose2d):
    """The crop's own pixels say which source pixel each is; the labels must say the same."""
    scale, shift = trees.measured_crop(store.image(row))
    seen = store.visible[row] > 0
    np.testing.assert_allclose((store.pose2d[row] * scale + shift)[seen], pose2d[seen], atol=0.1)


def assert_person_fills_the_square(pose2d, size, padding=1.25):
    low, high = pose2d.min(axis=1), pose2d.max(axis=1)
    np.testing.assert_allclose((high - low).max(axis=1), size / padding, rtol=0.02)
    np.testing.assert_allclose((low + high) / 2, size / 2 - 0.5, atol=1)


def test_eth_of_the_paper(tmp_path):
    everyone = trees.eth(tmp_path / "src", size=64)
    train, valid = converted("eth", tmp_path / "src", tmp_path, ConvertOptions(size=48, quality=100, workers=1))
    assert (len(train), set(train.subject), set(valid.subject)) == (8, {"S1", "S5"}, {"S6"})
    assert (train.action[0], train.camera[0], train.frame[3], train.name[1]) == (
        *("Eat", "54138969", 4),
        "S1_Walk.54138969_000002.jpg",
    )
    np.testing.assert_allclose(train.pose2d, (everyone.pose2d[:8] + 0.5) * 0.75 - 0.5, atol=1e-4)
    np.testing.assert_allclose(valid.pose3d, everyone.pose3d[8:], rtol=1e-6)
    np.testing.assert_allclose(train.intrinsics[0], [56.25, 56.25, 23.875, 23.875], atol=1e-2)  # fitted
    np.testing.assert_allclose(projected(train), train.pose2d, atol=0.01)
    inside = ((everyone.pose2d >= -0.5) & (everyone.pose2d <= 63.5)).all(-1)
    np.testing.assert_array_equal(train.visible, inside[:8])
    assert_labels_lie_on_pixels(train, 0, everyone.pose2d[0])


def test_eth_at_its_own_size_keeps_the_bytes(tmp_path):
    trees.eth(tmp_path / "src", size=64)
    train, _ = converted("eth", tmp_path / "src", tmp_path, ConvertOptions(size=64))
    assert train.read_jpeg(2) == (tmp_path / "src" / "images" / train.name[2]).read_bytes()


def test_eth_without_a_pinhole_has_no_intrinsics(tmp_path):
    trees.eth(tmp_path / "src")
    with h5py.File(tmp_path / "src/annot/train.h5", "r+") as file:
        file["pose2d"][0, 5] += 30
    train, _ = converted("eth", tmp_path / "src", tmp_path)
    assert np.isnan(train.intrinsics[0]).all()
    assert np.isfinite(train.intrinsics[1:]).all()


def test_h36m_fetch(tmp_path):
    views = trees.h36m_fetch(tmp_path / "src")
    train, valid = converted("h36m-fetch", tmp_path / "src", tmp_path)
    assert (len(train), len(valid), set(valid.subject)) == (6, 12, {"S9", "S11"})
    assert train.name[1] == "S1/Directions-2/54138969/img_000006.jpg"
    assert (train.action[1], train.camera[4], train.frame[4]) == ("Directions", "55011271", 6)
    np.testing.assert_allclose(train.pose3d[:3], views["S1/54138969"].pose3d, rtol=1e-6)
    np.testing.assert_allclose(projected(valid), valid.pose2d, atol=0.01)
    assert_person_fills_the_square(train.pose2d, 128)
    for row in range(3):
        assert_labels_lie_on_pixels(train, row, views["S1/54138969"].pose2d[row])


def test_h36m_fetch_from_the_processed_folder_itself(tmp_path):
    trees.h36m_fetch(tmp_path / "src")
    assert detect_layout(tmp_path / "src" / "processed") == "h36m-fetch"


def test_mmpose(tmp_path):
    found = trees.mmpose(tmp_path / "src")
    train, valid = converted("mmpose", tmp_path / "src", tmp_path)
    assert (len(train), len(valid), set(train.subject), set(valid.subject)) == (8, 4, {"S1", "S5"}, {"S9"})
    assert (train.action[0], train.camera[2], train.frame[1]) == ("Eating", "55011271", 6)
    np.testing.assert_allclose(valid.pose3d, found["test"].pose3d, rtol=1e-6)
    np.testing.assert_allclose(projected(train), train.pose2d, atol=0.01)
    assert_person_fills_the_square(train.pose2d, 128)
    assert_labels_lie_on_pixels(valid, 3, found["test"].pose2d[3])


def test_mmpose_without_that_frame_rate(tmp_path):
    trees.mmpose(tmp_path / "src")
    with pytest.raises(DataError, match=r"no annotation_body3d/fps50.*there is \[10\]"):
        convert("mmpose", tmp_path / "src", tmp_path / "out", fps=50)


def quaternion_of(rotation):
    w = np.sqrt(1 + np.trace(rotation)) / 2
    skew = (rotation - rotation.T) / (4 * w)
    return np.array([w, skew[2, 1], skew[0, 2], skew[1, 0]]).tolist()


def write_cameras(kind, root):
    cameras = {name: trees.world_camera(i) for i, name in enumerate(trees.CAMERAS)}
    if kind == "pkl":
        trees.write_mmpose_cameras(root / "cameras.pkl")
        return root / "cameras.pkl"
    if kind == "json":
        entry = {name: {k: np.asarray(v).squeeze().tolist() for k, v in c.items()} for name, c in cameras.items()}
        (root / "cameras.json").write_text(json.dumps(dict.fromkeys(("S1", "S5", "S9"), entry)))
        return root / "cameras.json"
    lenses = [
        {"id": name, "focal_length": camera["f"].ravel().tolist(), "center": camera["c"].ravel().tolist()}
        for name, camera in cameras.items()
    ]
    views = [
        {"orientation": quaternion_of(camera["R"]), "translation": camera["T"].ravel().tolist()}
        for camera in cameras.values()
    ]
    table = {"S1": views, "S2": [{}, {}], "S5": views, "S9": views}
    file = root.parent / "common" / "h36m_dataset.py"
    file.parent.mkdir()
    tables = {"h36m_cameras_intrinsic_params": lenses, "h36m_cameras_extrinsic_params": table}
    text = "".join(f"{name} = {value!r}\n" for name, value in tables.items())
    file.write_text(f"import never_there\n{text}raise SystemExit\n")
    return file


@pytest.mark.parametrize("kind", ["pkl", "json", "py"])
def test_videopose3d(tmp_path, kind):
    world = trees.videopose3d(tmp_path / "data")
    write_cameras(kind, tmp_path / "data")  # found without being named
    train, valid = converted("videopose3d", tmp_path / "data", tmp_path, step=5)
    assert (len(train), len(valid), train.has_images) == (2 * 2 * 2 * 3, 2 * 2 * 3, False)
    assert train.name[1] == "S1/Photo 1.54138969/000006"
    assert (train.action[0], train.frame[2], set(valid.subject)) == ("Photo", 11, {"S9"})
    camera = trees.world_camera(0)
    expected = np.stack([camera["R"].T @ (x - camera["T"][:, 0]) for x in world["S1"]["Photo 1"][5]])
    np.testing.assert_allclose(train.pose3d[1], expected, atol=0.01)
    assert (train.pose3d[..., 2] > 3000).all()
    head_above_feet = train.pose2d[:, 10, 1] < train.pose2d[:, 3, 1]
    assert head_above_feet.all()
    np.testing.assert_allclose(projected(train), train.pose2d, atol=0.01)
    assert_person_fills_the_square(train.pose2d, 128)


def test_videopose3d_with_detected_keypoints(tmp_path):
    world = trees.videopose3d(tmp_path / "data")
    cameras = load_cameras(write_cameras("json", tmp_path / "data"))
    seen = {}
    for subject, recordings in world.items():
        views = {
            n: [(c := cameras[subject, name]).project(c.from_world(p)) + 3 for name in trees.CAMERAS]
            for n, p in recordings.items()
        }
        seen[subject] = {
            name: [np.concatenate([v, v[-1:]]) for v in view] for name, view in views.items()
        }  # a frame more
    np.savez(tmp_path / "data_2d_h36m_x.npz", positions_2d=seen, metadata={"num_joints": 17})
    train, _ = converted("videopose3d", tmp_path / "data", tmp_path, keypoints=tmp_path / "data_2d_h36m_x.npz", step=1)
    assert len(train) == 2 * 2 * 2 * 11
    scale = train.intrinsics[:, :1] / np.where(np.array(train.camera) == trees.CAMERAS[0], 1145, 1146)[:, None]
    np.testing.assert_allclose((train.pose2d - projected(train)) / scale[:, None], 3, atol=0.02)


def test_videopose3d_needs_cameras(tmp_path):
    trees.videopose3d(tmp_path / "data")
    with pytest.raises(DataError, match=r"world coordinates and has no cameras; give --cameras"):
        convert("videopose3d", tmp_path / "data", tmp_path / "out")


def test_rotation_of_quaternion():
    rotation = trees.world_camera(0)["R"]
    np.testing.assert_allclose(rotation_of_quaternion(np.array(quaternion_of(rotation)) * 2), rotation, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["T"].__imul__(0.001), "wrong unit"),
        (lambda c: c["R"].__imul__(1.1), "R is not a rotation"),
        (lambda c: c["f"].__imul__(-1), "focal length"),
        (lambda c: c.pop("c"), "not a file of cameras"),
    ],
)
def test_bad_cameras_are_refused(tmp_path, change, message):
    camera = trees.world_camera(0)
    camera["T"] = camera["T"] / 1000
    change(camera)
    (tmp_path / "cameras.pkl").write_bytes(pickle.dumps({("S1", "54138969"): camera}))
    with pytest.raises(DataError, match=rf"cameras\.pkl.*{message}"):
        load_cameras(tmp_path / "cameras.pkl")


def test_coco(tmp_path):
    kept = trees.coco(tmp_path / "src")
    train, valid = converted("coco", tmp_path / "src", tmp_path)
    assert (len(train), len(valid)) == (3, 2)
    assert train.name[1] == "000000000009.jpg#101"
    assert np.isnan(train.pose3d).all()
    assert np.isnan(train.intrinsics).all()
    person = np.array(kept["train2017"][0]["keypoints"]).reshape(17, 3)
    assert train.visible[0].tolist() == [1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 0, 0, 1, 1, 0, 1, 1]  # shoulders, crown unknown
    assert train.visible[2].sum() == 1  # the nose alone
    scale, shift = trees.measured_crop(train.image(0))
    back = train.pose2d[0] * scale + shift
    np.testing.assert_allclose(back[2], person[14, :2], atol=0.15)  # RKnee is COCO's right knee
    np.testing.assert_allclose(back[13], person[9, :2], atol=0.15)  # LWrist is COCO's left wrist
    np.testing.assert_allclose(back[0], person[[11, 12], :2].mean(0), atol=0.15)
    side = 1.25 * 180  # the box's longer side, padded
    np.testing.assert_allclose(scale, side / 128, rtol=1e-2)
    corner = np.round(np.array([29.9 + 80, 20.25 + 90]) - side / 2)  # COCO's boxes count from the picture's corner
    np.testing.assert_allclose(shift, corner + scale / 2 - 0.5, atol=0.2)


def test_coco_middles_need_both_ends():
    keypoints = np.zeros((1, 17, 3))
    keypoints[0, 5:7] = [[10, 0, 2], [20, 0, 1]]
    keypoints[0, 11] = [10, 40, 2]
    pose2d, known = to_h36m(keypoints)
    assert np.flatnonzero(known[0]).tolist() == [4, 8, 11, 14]  # LHip, Thorax and the shoulders; no Hip, no Spine
    assert pose2d[0, 8].tolist() == [15, 0]


# Wrong input


def edit(file, **values):
    with h5py.File(file, "r+") as opened:
        for name, value in values.items():
            del opened[name]
            opened[name] = value(opened) if callable(value) else value


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pose2d": np.zeros((12, 16, 2))}, r"train\.h5: pose2d must be \[N, 17, 2\], got \[12, 16, 2\]"),
        ({"pose3d": np.zeros((12, 32, 3))}, r"train\.h5: pose3d must be \[N, 17, 3\], got \[12, 32, 3\]"),
        ({"pose2d": np.zeros((11, 17, 2))}, "different numbers of rows"),
        ({"pose3d": np.tile(trees.STANDING / 1000 + [0, 0, 4], (12, 1, 1))}, "look like metres"),
        ({"pose3d": np.tile(trees.STANDING, (12, 1, 1))}, "behind the camera"),
        ({"pose3d": np.tile(trees.STANDING / 10 + [0, 0, 400], (12, 1, 1))}, "wrong unit, or wrong joint order"),
    ],
)
def test_eth_labels_are_checked(tmp_path, values, message):
    trees.eth(tmp_path / "src")
    edit(tmp_path / "src/annot/train.h5", **values)
    with pytest.raises(DataError, match=message):
        convert("eth", tmp_path / "src", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_eth_names_are_checked(tmp_path):
    trees.eth(tmp_path / "src")
    names = tmp_path / "src/annot/train_images.txt"
    names.write_text(names.read_text().replace("S1_Walk.54138969_000002.jpg", "holiday.jpg"))
    with pytest.raises(DataError, match=r"train\.h5: row 1: 'holiday.jpg' is not like"):
        convert("eth", tmp_path / "src", tmp_path / "out")


def test_h36m_fetch_needs_32_joints_and_camera_poses(tmp_path):
    trees.h36m_fetch(tmp_path / "a")
    file = tmp_path / "a/processed/S9/Directions-2/annot.h5"
    edit(file, **{"pose/2d": lambda f: f["pose/3d"][:, :17, :2]})
    with pytest.raises(DataError, match=r"S9.Directions-2.annot\.h5: pose/2d must be \[N, 32, 2\], got \[6, 17, 2\]"):
        convert("h36m-fetch", tmp_path / "a", tmp_path / "out")
    with h5py.File(file, "r+") as opened:
        del opened["pose/3d"]
    with pytest.raises(DataError, match=r"\['pose/3d'\] are missing"):
        convert("h36m-fetch", tmp_path / "a", tmp_path / "out")


def test_mmpose_in_millimetres_is_refused(tmp_path):
    trees.mmpose(tmp_path / "src")
    file = tmp_path / "src/annotation_body3d/fps10/h36m_train.npz"
    with np.load(file) as archive:
        content = {**archive, "S": archive["S"] * [1000, 1000, 1000, 1]}
    np.savez(file, **content)
    with pytest.raises(DataError, match=r"h36m_train\.npz: S, from metres: the median thigh is 4"):
        convert("mmpose", tmp_path / "src", tmp_path / "out")


def test_coco_with_other_joints_is_refused(tmp_path):
    trees.coco(tmp_path / "src")
    file = tmp_path / "src/annotations/person_keypoints_train2017.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["keypoints"] += [1, 1, 1]
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"keypoints must be 3 x 17 numbers, got \[51, 54\]"):
        convert("coco", tmp_path / "src", tmp_path / "out")
    file.write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        convert("coco", tmp_path / "src", tmp_path / "out")


def test_wrong_layout_source_and_options(tmp_path):
    with pytest.raises(ValueError, match="layout must be one of"):
        convert("h36m", tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match="not a dataset of layout coco"):
        convert("coco", tmp_path, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="nowhere: no such directory"):
        convert("coco", tmp_path / "nowhere", tmp_path / "out")
    for wrong in ({"size": 4}, {"quality": 0}, {"padding": 0.5}, {"limit": (0, 1)}, {"workers": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ConvertOptions(**wrong)


# Splits and choices


def test_held_out_subjects():
    assert held_out_subjects(["S1", "S9"]) == {"S9"}
    assert held_out_subjects(["S9", "S11"]) == {"S11"}  # no other to train on
    assert held_out_subjects([f"S{i}" for i in range(1, 31) if i not in (9, 11)]) == {"S28", "S29", "S30"}
    with pytest.raises(DataError, match="two or more"):
        held_out_subjects(["S1", "S1"])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), min_size=1, max_size=60), st.integers(1, 70))
def test_choose_evenly(rows, count):
    subjects, actions = ([str(row[i]) for row in rows] for i in (0, 1))
    chosen = choose_evenly(subjects, actions, count)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(count, len(rows))
    per_subject = {s: sum(subjects[i] == s for i in chosen) for s in set(subjects)}
    for subject, taken in per_subject.items():  # nobody gives two more than another who still has rows
        assert taken == subjects.count(subject) or taken >= max(per_subject.values()) - 1


def test_choose_evenly_spreads_over_a_recording():
    chosen = choose_evenly(["S1"] * 64, ["Walk"] * 64, 8)
    assert np.diff(chosen).min() >= 8
