"""The synthesizer: its parts without a picture, the pictures' labels, and the corpus that is made of them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic_assets import write_assets, write_bvh, write_captures, write_garment

from hpe_fast import synthesize
from hpe_fast.data.store import PoseStore
from hpe_fast.skeleton import EDGES
from hpe_fast.synthetic import corpus as corpus_module
from hpe_fast.synthetic import kernels, materials, paint
from hpe_fast.synthetic.builtin_poses import builtin_clips
from hpe_fast.synthetic.camera import random_shot
from hpe_fast.synthetic.corpus import Corpus, remake, render_corpus
from hpe_fast.synthetic.makehuman import read_binding, read_mesh
from hpe_fast.synthetic.motion import MotionLibrary, mirrored, read_bvh, recording_name
from hpe_fast.synthetic.rotations import axis_angle
from hpe_fast.synthetic.scenery import Box, Panoramas
from hpe_fast.synthetic.splits import SPLITS, split_of
from hpe_fast.synthetic.studio import Settings, _behind
from hpe_fast.synthetic.things import obstacles

SMALL = 96


def needs_renderer():
    pytest.importorskip("anny", reason="the extra `synthetic` is not installed")
    pytest.importorskip("warp", reason="the extra `synthetic` is not installed")


@pytest.fixture(scope="module")
def assets(tmp_path_factory) -> Path:
    return write_assets(tmp_path_factory.mktemp("assets"))


@pytest.fixture(scope="module")
def captures(tmp_path_factory) -> Path:
    return write_captures(tmp_path_factory.mktemp("captures"))


def settings(**changes) -> Settings:
    plain = Settings(seed=5, split="train", assets=None, mocap=None, size=SMALL, people=4, device="cpu")
    return replace(plain, **changes)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> PoseStore:
    """Built-in poses, painted clothes."""
    needs_renderer()
    out = tmp_path_factory.mktemp("corpus") / "people.h5"
    return PoseStore(render_corpus(Corpus(out, 120, settings())))


# ---------------------------------------------------------------------------------------------------- without pictures


def test_everything_can_be_imported_without_the_extra(tmp_path):
    names = sorted(path.stem for path in Path(kernels.__file__).parent.glob("*.py") if path.stem != "__init__")
    code = f"""
import importlib, sys
sys.modules["warp"] = sys.modules["anny"] = None
import importlib.util as util
find = util.find_spec
util.find_spec = lambda name, *rest: None if name in ("anny", "warp") else find(name, *rest)
for name in {names}:
    importlib.import_module("hpe_fast.synthetic." + name)
from hpe_fast.synthesize import main
sys.exit(main(["--out", {str(tmp_path / "x.h5")!r}, "--count", "1"]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert "pip install 'hpe-fast[synthetic]'" in result.stderr
    assert not list(tmp_path.iterdir())


def test_materials_have_the_same_columns_as_the_kernels():
    pytest.importorskip("warp")
    for name, column in materials.COLUMNS.items():
        assert int(getattr(kernels, name.upper())) == column
    assert [kernels.MODE_PICTURE, kernels.MODE_CLOTH, kernels.MODE_PLAIN, kernels.MODE_DRESSED] == [
        materials.PICTURE,
        materials.CLOTH,
        materials.PLAIN,
        materials.DRESSED,
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 8, 41])
def test_each_name_is_in_one_split(count):
    side = split_of(f"name{k}" for k in range(count))
    assert len(side) == count
    assert set(side.values()) == (set(SPLITS) if count >= 3 else {"train"})
    assert side == split_of(reversed(list(side)))


def test_bvh_angles_become_rotations(tmp_path):
    angles = np.random.default_rng(3).uniform(-170, 170, (4, 25, 3))
    names = write_bvh(tmp_path / "walk" / "a.bvh.gz", angles)
    clip = read_bvh(tmp_path / "walk" / "a.bvh.gz")
    assert clip.names == names
    z, y, x = (axis_angle(np.tile(axis, (4, 1)), np.radians(angles[:, 7, i])) for i, axis in enumerate(np.eye(3)[::-1]))
    np.testing.assert_allclose(clip.local[:, 7], z @ y @ x, atol=1e-6)


def test_a_mirrored_pose_is_the_mirror_image():
    clip = builtin_clips()["walk"][0]
    local = clip.local[3]
    other = mirrored(clip, local)
    np.testing.assert_allclose(mirrored(clip, other), local, atol=1e-12)
    left, right = clip.names.index("LeftKnee"), clip.names.index("RightKnee")
    flip = np.diag([-1, 1, 1])
    np.testing.assert_allclose(other[right], flip @ local[left] @ flip)


def test_splits_share_no_recording(captures):
    libraries = {split: MotionLibrary(captures, split) for split in SPLITS}
    recordings = [libraries[split].recordings for split in SPLITS]
    assert sum(map(len, recordings)) == len(set().union(*recordings)) == 9 + 1 + 3
    assert recording_name(Path("20_01_a.bvh")) == recording_name(Path("20_01_b.bvh.gz"))


def test_built_in_poses_are_split_too():
    recordings = [MotionLibrary(None, split).recordings for split in SPLITS]
    assert all(recordings)
    assert sum(map(len, recordings)) == len(set().union(*recordings))


def test_splits_share_no_panorama(assets):
    names = [{item.name for item in Panoramas(folder, split).items} for folder in (assets, None) for split in SPLITS]
    assert all(names)
    assert sum(map(len, names)) == len(set().union(*names))


def test_a_crop_shows_the_person_it_was_made_for():
    rng = np.random.default_rng(0)
    person = rng.uniform([-0.3, -0.2, 0], [0.3, 0.2, 1.8], (500, 3))
    shots = [random_shot(rng, person, 0.0, 200) for _ in range(200)]
    whole = 0
    for shot in shots:
        seen = shot.camera.project(shot.camera.to_camera(person))
        inside = ((seen > -0.5) & (seen < 199.5)).all(axis=1)
        assert inside.mean() > 0.3
        whole += inside.all()
        assert shot.cut or inside.all()
        np.testing.assert_allclose(shot.camera.axes.T @ shot.camera.axes, np.eye(3), atol=1e-12)
        assert np.linalg.det(shot.camera.axes) > 0
        assert shot.camera.axes[2, 1] < 0  # down is down
    assert 0.8 < whole / len(shots) < 0.95


def test_joints_behind_a_surface_are_occluded():
    nearness = np.zeros((20, 20), np.float32)
    nearness[:, :10] = 1 / 2.0
    pose2d = np.tile([7.0, 5.0], (17, 1))
    pose2d[:8, 0] = 2.0
    in_camera = np.tile([0.0, 0.0, 2.5], (17, 1))
    hidden = _behind(nearness, pose2d, in_camera, 1.7)
    assert hidden.tolist() == [True] * 8 + [False] * 9
    assert not _behind(nearness, pose2d, in_camera - [0, 0, 0.47], 1.7).any()


def test_a_box_contains_what_is_inside():
    box = Box(np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.2, 1.0]), np.pi / 2)
    points = np.array([[1.0, 2.9, 3.4], [1.9, 2.0, 3.0], [1.0, 2.0, 3.6]])
    assert box.contains(points).tolist() == [True, False, False]
    assert box.contains(points, 0.2).tolist() == [True, False, True]


@pytest.mark.parametrize("tall", [0.15, 0.4, 1.0, 2.0])
def test_things_stand_round_people_of_any_height(tall):
    kinds = set()
    for seed in range(200):
        rng = np.random.default_rng(seed)
        person = rng.uniform([-0.5, -0.2, 0.0], [0.5, 0.2, tall], (300, 3))
        shot = random_shot(rng, person, 0.0, SMALL)
        parts, names = obstacles(rng, shot.camera, person, 0.0, 0)
        assert len(parts) == len(names)
        assert all(np.isfinite(part.rest).all() for part in parts)
        kinds |= set(names)
    assert {"crate", "pole", "clutter"} <= kinds


def test_a_garments_files(tmp_path):
    binding = read_binding(write_garment(tmp_path, "coat"))
    assert binding.index.shape == (40, 3)
    np.testing.assert_allclose(binding.weight.sum(axis=1), 1)
    assert binding.hidden.tolist() == [2000, 2001, 2002, 2003, 2004, 2005, 2009]
    assert binding.scale == {"x": (5399, 11998, 1.48)}
    count, texture, faces, texture_faces = read_mesh(binding.mesh)
    assert (count, len(texture), faces.shape, texture_faces.max()) == (40, 40, (36, 3), 39)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--count", "0"], "--count must be at least 1, got 0"),
        (["--count", "1", "--workers", "0"], "--workers must be at least 1"),
        (["--count", "1", "--seed", "-1"], "--seed must not be negative"),
        (["--count", "1", "--size", "7"], "--size must be 32 to 1024 pixels, got 7"),
        (["--count", "1", "--assets", "/no/such/place"], "--assets /no/such/place: no such directory"),
        (["--count", "1", "--mocap", "/no/such/place"], "--mocap /no/such/place: no such directory"),
    ],
)
def test_arguments_without_sense(tmp_path, capsys, arguments, words):
    assert synthesize.main(["--out", str(tmp_path / "x.h5"), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", [b"", b"HIERARCHY\nROOT Hips\n{\n}\nMOTION\n", b"\xff\x00\x01", b"MOTION Frame Time: x"]
)
def test_a_damaged_capture_is_named(tmp_path, content):
    path = tmp_path / "walk" / "broken.bvh"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.bvh: "):
        read_bvh(path)


def test_a_folder_without_captures_is_named(tmp_path):
    with pytest.raises(ValueError, match="--mocap"):
        MotionLibrary(tmp_path, "train")


def test_a_damaged_panorama_is_named(tmp_path):
    (tmp_path / "broken.hdr").write_bytes(b"#?RADIANCE\n")
    with pytest.raises(ValueError, match=r"broken\.hdr"):
        Panoramas(tmp_path, "train")


@pytest.mark.parametrize("content", ["", "verts 0\n1 2 x", "obj_file a.obj\nverts 0\n1 2 3 0.5"])
def test_a_damaged_garment_is_named(tmp_path, content):
    path = tmp_path / "broken.mhclo"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"broken\.mhclo"):
        read_binding(path)


# ------------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.slow
def test_labels_project_onto_each_other(rendered):
    fx_fy, centre = rendered.intrinsics[:, None, :2].astype(float), rendered.intrinsics[:, None, 2:]
    points = rendered.pose3d.astype(float)
    projected = points[..., :2] / points[..., 2:] * fx_fy + centre
    assert np.abs(projected - rendered.pose2d).max() < 0.01
    inside = ((rendered.pose2d > -0.5) & (rendered.pose2d < SMALL - 0.5)).all(axis=2)
    np.testing.assert_array_equal(rendered.visible, inside)
    assert rendered.visible.mean() > 0.9
    assert (rendered.occluded <= rendered.visible).all()
    assert 0.02 < rendered.occluded.mean() < 0.4


@pytest.mark.slow
def test_people_have_the_size_of_people(rendered):
    lengths = np.stack(
        [np.linalg.norm(rendered.pose3d[:, a] - rendered.pose3d[:, b], axis=1) for a, b in EDGES], axis=1
    )
    assert lengths.min() > 40
    assert lengths.max() < 600
    same = np.array(rendered.subject) == rendered.subject[0]
    assert same.sum() == 4
    limbs = [i for i, (parent, _) in enumerate(EDGES) if parent in (1, 2, 4, 5, 11, 12, 14, 15)]
    assert np.ptp(lengths[same][:, limbs], axis=0).max() < 0.1  # one person's bones do not change, mm
    assert rendered.pose3d[:, 0, 2].min() > 1000


@pytest.mark.slow
def test_left_is_left(rendered):
    pose = rendered.pose3d.astype(float)
    up = pose[:, 10] - pose[:, 8]
    up /= np.linalg.norm(up, axis=1, keepdims=True)
    face = pose[:, 9] - pose[:, 8]
    face -= (face * up).sum(axis=1, keepdims=True) * up
    right = np.cross(face, up)  # in a right-handed frame
    assert (((pose[:, 14] - pose[:, 11]) * right).sum(axis=1) > 0).mean() > 0.95  # heads may look back
    towards = (face[:, 2] < -0.6 * np.linalg.norm(face, axis=1)) & (up[:, 1] < -0.7)
    assert towards.sum() >= 8
    assert (rendered.pose2d[towards, 14, 0] < rendered.pose2d[towards, 11, 0]).mean() > 0.9
    assert (rendered.pose2d[towards, 1, 0] < rendered.pose2d[towards, 4, 0]).mean() > 0.9


@pytest.mark.slow
def test_the_person_is_drawn_where_the_joints_are(monkeypatch):
    needs_renderer()
    from hpe_fast.synthetic import studio as module

    drawn = []
    finish = module.photograph
    monkeypatch.setattr(module, "photograph", lambda rng, layers: (drawn.append(layers), finish(rng, layers))[1])
    studio = module.Studio(settings(size=192))
    on_body = []
    for number in range(12):
        row = studio.picture(number)
        at = np.round((row.pose2d + 0.5) * 2 - 0.5).astype(int)[row.visible > 0].clip(0, 383)
        nearness = drawn[-1].nearness[at[:, 1], at[:, 0]]
        surface = 1000 / nearness[nearness > 0]
        joints = row.pose3d[row.visible > 0, 2][nearness > 0]
        assert (joints > surface - 15).all()  # flesh is in front of a joint, mm
        on_body.append((nearness > 0).mean())
    assert np.mean(on_body) > 0.98
    rest = studio.body.shape({}, np.zeros(3))
    assert rest.joints[9, 1] < rest.joints[10, 1]  # faces -y,
    assert (rest.joints[[4, 5, 6, 11, 12, 13], 0] > 0).all()  # so that left is +x
    assert (rest.joints[[1, 2, 3, 14, 15, 16], 0] < 0).all()
    again = studio.picture(7)
    assert again.jpeg == module.Studio(settings(size=192)).picture(7).jpeg


@pytest.mark.slow
def test_a_recipe_says_how_a_picture_was_made(rendered):
    recipes = [json.loads(recipe) for recipe in rendered.recipe]
    assert [recipe["index"] for recipe in recipes] == list(range(120))
    assert {recipe["seed"] for recipe in recipes} == {5}
    assert all(recipe["clip"] and recipe["panorama"] for recipe in recipes)


@pytest.mark.slow
def test_bones_follow_the_capture():
    needs_renderer()
    from hpe_fast.synthetic.body import Body
    from hpe_fast.synthetic.motion import bone_turns

    body = Body()
    shape = body.shape({}, np.zeros(3))
    pairs = (
        ("LeftKnee", "LeftAnkle", 5, 6),
        ("RightElbow", "RightWrist", 15, 16),
        ("LeftShoulder", "LeftElbow", 11, 12),
    )
    for clip in (builtin_clips()["walk"][1], builtin_clips()["reach"][2], builtin_clips()["sit_floor"][0]):
        world = clip.local[5].copy()
        for joint, parent in enumerate(clip.parents):
            if parent >= 0:
                world[joint] = world[parent] @ clip.local[5][joint]
        _, joints = body.pose(shape, bone_turns(body, shape, clip, clip.local[5]))
        for upper, lower, a, b in pairs:
            x, y, z = world[clip.names.index(upper)] @ clip.offsets[clip.names.index(lower)]
            want, got = np.array([x, -z, y]), joints[b] - joints[a]
            cosine = want @ got / np.linalg.norm(want) / np.linalg.norm(got)
            assert cosine > np.cos(np.radians(6))


# --------------------------------------------------------------------------------------------------------------- corpus


def command(out: Path, *more: str) -> list[str]:
    plain = ["--out", str(out), "--count", "110", "--size", "48", "--seed", "9", "--no-sheet"]
    return [sys.executable, "-m", "hpe_fast.synthesize", *plain, *more]


@pytest.mark.slow
def test_the_same_file_from_one_and_two_workers_and_after_kills(tmp_path, assets, captures):
    needs_renderer()
    folders = ["--assets", str(assets), "--mocap", str(captures)]
    one, two, killed = (tmp_path / name for name in ("one.h5", "two.h5", "killed.h5"))
    subprocess.run(command(one, *folders), check=True, capture_output=True)
    subprocess.run(command(two, *folders, "--workers", "2"), check=True, capture_output=True)
    assert one.read_bytes() == two.read_bytes()
    process = subprocess.Popen(
        command(killed, *folders, "--workers", "2"), stdout=-1, stderr=-1, start_new_session=True
    )
    parts = tmp_path / "killed.h5.parts"
    deadline = time.monotonic() + 300
    while not list(parts.glob("0*.h5")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 20
    while _alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(process.pid), "workers outlived their parent"
    made = list(parts.glob("0*.h5"))
    assert made
    assert not killed.exists()
    made[0].write_bytes(made[0].read_bytes()[:1000])  # as a crash of the machine may leave it
    subprocess.run(command(killed, *folders), check=True, capture_output=True)
    assert killed.read_bytes() == one.read_bytes()
    assert not parts.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"one.h5", "two.h5", "killed.h5"}
    with PoseStore(one) as store:
        recipes = [json.loads(recipe) for recipe in store.recipe]
        assert len(store) == 110
    worn = {recipe.get("outfit") for recipe in recipes} - {None}
    assert worn
    assert worn.isdisjoint(
        name for name, side in split_of(f"male_suit{k}" for k in range(5)).items() if side != "train"
    )


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_a_killed_worker_is_an_error_that_says_so(tmp_path):
    needs_renderer()
    out = tmp_path / "x.h5"
    more = ["--workers", "2", "--count", "5000"]
    process = subprocess.Popen(command(out, *more), stdout=-1, stderr=-1, text=True, start_new_session=True)
    parts = tmp_path / "x.h5.parts"
    deadline = time.monotonic() + 300
    while not list(parts.glob("0*.h5")) and time.monotonic() < deadline:
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(workers[-1]), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "a worker was killed" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_other_settings_do_not_mix(tmp_path, capsys):
    needs_renderer()
    out = tmp_path / "x.h5"
    plain = ["--out", str(out), "--count", "2", "--size", "32", "--no-sheet"]
    assert synthesize.main(plain) == 0
    stamp = out.stat().st_mtime_ns
    assert synthesize.main(plain) == 0
    assert out.stat().st_mtime_ns == stamp
    assert synthesize.main([*plain, "--seed", "2"]) == 2
    assert "made with other settings" in capsys.readouterr().err
    parts = tmp_path / "x.h5.parts"
    parts.mkdir()
    (parts / "settings.json").write_text("{}")
    out.rename(parts / "00000000.h5")
    assert synthesize.main(plain) == 2
    assert "x.h5.parts: holds parts of a corpus with other settings" in capsys.readouterr().err
    (parts / "00000000.h5").unlink()  # a start that failed before its first part
    assert synthesize.main(plain) == 0


@pytest.mark.slow
def test_clothes_of_the_splits_differ(assets):
    needs_renderer()
    from hpe_fast.synthetic.body import Body
    from hpe_fast.synthetic.wardrobe import Wardrobe

    body = Body()
    wardrobes = {split: Wardrobe(assets, body, split) for split in SPLITS}
    clothes = [wardrobe.clothes for wardrobe in wardrobes.values()]
    assert all(clothes)
    assert sum(map(len, clothes)) == len(set().union(*clothes)) == 8
    designs = {}
    for split, wardrobe in wardrobes.items():
        rng = np.random.default_rng(0)
        designs[split] = {wardrobe.dress(rng, wardrobe.person(rng))[1]["design"] for _ in range(10)}
    assert sum(map(len, designs.values())) == len(set().union(*designs.values()))


@pytest.mark.slow
def test_assets_that_cannot_be_used_are_named(tmp_path):
    needs_renderer()
    from hpe_fast.synthetic.body import Body
    from hpe_fast.synthetic.wardrobe import Wardrobe

    with pytest.raises(ValueError, match="--assets"):
        Wardrobe(tmp_path, Body(), "train")
    path = write_garment(tmp_path / "clothes", "male_suit")
    mesh = path.with_suffix(".obj")
    mesh.write_text(mesh.read_text() + "\nv 1 2 3")
    with pytest.raises(ValueError, match=r"male_suit\.mhclo: binds 40 vertices"):
        Wardrobe(tmp_path, Body(), "train")
    (tmp_path / "clothes" / "male_suit_diffuse.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"male_suit_diffuse\.png"):
        Wardrobe(tmp_path, Body(), "train")


def test_a_part_with_a_damaged_picture_is_rendered_again(make_store, tmp_path):
    path = tmp_path / "part.h5"
    path.write_bytes(make_store(count=3).read_bytes())
    assert corpus_module._is_whole(path, 3)
    with PoseStore(path) as store:
        place = store._base + int(store.offset[1]) + 40
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))
    assert not corpus_module._is_whole(path, 3)


def test_the_file_is_not_written_among_the_assets(tmp_path):
    settings = Settings(0, "train", tmp_path, None, 64, 4, "cpu")
    with pytest.raises(ValueError, match="is inside --assets"):
        render_corpus(Corpus(tmp_path / "deep" / "x.h5", 1, settings))


def test_inventories_notice_changed_contents(tmp_path):
    (tmp_path / "a.hdr").write_bytes(b"one")
    first = corpus_module._inventory(tmp_path)
    (tmp_path / "a.hdr").write_bytes(b"two")
    assert corpus_module._inventory(tmp_path) != first


def test_too_few_panoramas_and_meshes_with_wrong_indices_are_named(assets, tmp_path):
    shutil.copy(next(assets.rglob("*.hdr")), tmp_path / "only.hdr")
    with pytest.raises(ValueError, match="1 panoramas are too few for a split valid"):
        Panoramas(tmp_path, "valid")
    mesh = tmp_path / "a.obj"
    for face in ("f 1/1 2/1 9/1", "f -1/1 1/1 2/1", "f 1/2 2/1 1/1"):
        mesh.write_text(f"v 0 0 0\nv 1 0 0\nvt 0 0\n{face}\n")
        with pytest.raises(ValueError, match="a face names a"):
            read_mesh(mesh)


def test_sportswear_ends_where_it_should():
    """Men bare above or in a vest, women in a top; trunks and no shoes are possible, and so are caps."""
    rng = np.random.default_rng(0)
    for female in (False, True):
        drawn = [paint.sportswear(rng, female) for _ in range(300)]
        bare = [limits["neck"] < limits["waist"] for limits in drawn]
        assert any(bare) == (not female)
        assert all(limits["trousers"] < 0 < limits["waist"] for limits in drawn)
        assert {limits["hairline"] < 9 for limits in drawn} == {True, False}
    place = np.array([[0.6, 0, -9.0], [0.3, 0, -9.0], [0.05, 0, -9.0], [-0.5, 0, -9.0]], np.float32)
    limits = paint.no_clothes() | {"waist": 0.2, "hem": 0.5, "neck": 0.9, "sleeve": 0.1, "trousers": -0.2}
    out = paint.swell(place, limits, True, np.random.default_rng(0))
    assert (out > 0).tolist() == [True, False, True, False], "a bare midriff, and bare legs"


@pytest.mark.slow
def test_a_picture_is_made_again_from_its_recipe(assets, tmp_path):
    needs_renderer()
    path = render_corpus(Corpus(tmp_path / "x.h5", 5, Settings(3, "train", assets, None, 48, 2, "cpu")))
    with PoseStore(path) as store:
        recipe = json.loads(store.recipe[3])
        row = remake(recipe, assets, None)
        assert row.jpeg == store.read_jpeg(3)
        np.testing.assert_array_equal(row.pose3d, store.pose3d[3])
    with pytest.raises(ValueError, match="differ"):
        remake(recipe | {"frame": -1}, assets, None)
