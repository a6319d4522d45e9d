"""Pictures: what is drawn stands where it should, in the right colour, and is saved whole or not at all."""

import sys

import cv2
import numpy as np
import pytest
import torch

from hpe_fast import plots
from hpe_fast.plots.images import LEFT_COLOR, RIGHT_COLOR, TRUNK_COLOR, joint_color
from hpe_fast.skeleton import JOINTS, LEFT, RIGHT


def canvas(height=120, width=160, value=255):
    return np.full((height, width, 3), value, np.uint8)


def person(seed=0, low=10, high=110):
    return np.random.default_rng(seed).uniform(low, high, (17, 2))


def poses3d(count, seed=0):
    return np.random.default_rng(seed).normal(0, 300, (count, 17, 3))


def test_sides_have_their_colours():
    assert {joint_color(j) for j in RIGHT} == {RIGHT_COLOR}
    assert {joint_color(j) for j in LEFT} == {LEFT_COLOR}
    assert joint_color(JOINTS.index("Head")) == TRUNK_COLOR


@pytest.mark.parametrize("joint", [3, 13, 10])
def test_a_joint_is_drawn_where_it_is(joint):
    keypoints = np.full((17, 2), np.nan)
    keypoints[joint] = [40, 25]
    drawn = plots.draw_skeleton(canvas(), keypoints)
    ys, xs = np.nonzero((drawn != 255).any(-1))
    assert (xs.mean(), ys.mean()) == pytest.approx((40, 25), abs=0.3)
    assert tuple(drawn[25, 40]) == joint_color(joint)


def test_bones_join_parents_and_children_only():
    keypoints = np.full((17, 2), np.nan)
    keypoints[[1, 2]] = [[30, 20], [30, 100]]  # right hip and knee
    keypoints[13] = [100, 60]  # left wrist alone
    drawn = plots.draw_skeleton(canvas(), keypoints)
    assert drawn[60, 30].tolist() == pytest.approx(RIGHT_COLOR, abs=20)
    assert (drawn[60, 45:90] == 255).all()


def test_low_scores_and_unknown_joints_are_left_out_and_the_input_stays():
    image, keypoints = canvas(), person()
    scores = np.zeros(17)
    assert (plots.draw_skeleton(image, keypoints, scores) == 255).all()
    assert (plots.draw_skeleton(image, np.full((17, 2), np.inf)) == 255).all()
    plots.draw_skeleton(image, np.stack([keypoints, keypoints + 20]), np.ones((2, 17)), min_score=0.5)
    assert (image == 255).all()
    plots.draw_skeleton(image, keypoints * 1e12)  # far outside: nothing to see, nothing to fail


def test_tensors_are_taken_like_arrays():
    image, keypoints = canvas(), person()
    expected = plots.draw_skeleton(image, keypoints)
    tensors = torch.from_numpy(image), torch.from_numpy(keypoints).requires_grad_()
    np.testing.assert_array_equal(plots.draw_skeleton(*tensors), expected)


@pytest.mark.parametrize(("u", "v"), [(0, 0), (8, 4), (15, 11)])
def test_heatmap_peaks_stand_at_stride_times_their_pixel(u, v):
    maps = np.zeros((17, 12, 16), np.float32)
    maps[5, v, u] = 3.0
    overlay = plots.heatmap_overlay(canvas(48, 64, 0), maps).astype(int)
    inside = overlay[max(0, 4 * v - 3) : 4 * v + 4, max(0, 4 * u - 3) : 4 * u + 4]
    assert overlay[4 * v, 4 * u, 0] > 150
    assert (overlay.sum((0, 1)) == inside.sum((0, 1))).all() or (u, v) == (15, 11)
    np.testing.assert_array_equal(plots.heatmap_overlay(canvas(), np.zeros((17, 8, 8))), canvas())


def test_contact_sheet_scales_each_picture_into_its_cell():
    images = [canvas(40, 80, 0), canvas(300, 150, 0), canvas(64, 64, 0)]
    keypoints = np.full((3, 17, 2), np.nan)
    keypoints[1, [2, 3]] = [[74.5, 149.5], [74.5, 249.5]]  # the second picture's middle, and below it
    sheet = plots.contact_sheet(images, keypoints, np.ones((3, 17)), columns=2, cell=100)
    assert sheet.shape == (200, 200, 3)
    assert sheet[70, 149].tolist() == pytest.approx(RIGHT_COLOR, abs=60)
    assert (sheet[:20, :100] == 255).all()
    assert (sheet[30:70, 5:95] == 0).all()
    assert (sheet[100:, 100:] == 255).all()
    hollow = plots.contact_sheet(images, keypoints, np.zeros((3, 17)), columns=2, cell=100)
    assert (hollow[49, 149] > 150).all()
    assert (sheet[49, 149] != hollow[49, 149]).any()


@pytest.mark.parametrize("truth", [True, False])
def test_predictions_figure_has_the_papers_columns(tmp_path, truth):
    images = [canvas(64, 64), canvas(80, 60)]
    flat, deep = np.stack([person(1, 5, 60), person(2, 5, 60)]), poses3d(2)
    maps = torch.rand(2, 17, 16, 16)
    true = (flat, deep) if truth else (None, None)
    path = tmp_path / "figures" / "predictions.png"
    figure = plots.predictions_figure(images, maps, true[0], flat + np.array([3, 4]), true[1], deep, path=path)
    assert len(figure.axes) == 2 * (6 if truth else 4)
    titles = [axes.get_title() for axes in figure.axes[: 6 if truth else 4]]
    assert titles[0] == "input"
    assert ("true 3D, side" in titles) is truth
    assert [axes.get_xlabel() for axes in figure.axes].count("error 5.0 px") == (2 if truth else 0)
    assert cv2.imread(str(path)).shape[2] == 3
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_side_view_turns_the_pose_and_does_not_mirror_it():
    from matplotlib.figure import Figure
    from mpl_toolkits.mplot3d import proj3d

    joints = poses3d(1)[0]
    axes = Figure().add_subplot(projection="3d")
    plots.skeleton3d(axes, joints)
    points = np.stack([np.ma.getdata(part) for part in axes.collections[0]._offsets3d], 1)
    turn = np.linalg.lstsq(joints, points, rcond=None)[0]
    np.testing.assert_allclose(joints @ turn, points, atol=1e-6)
    assert np.linalg.det(turn) == pytest.approx(1)
    x, y, _ = proj3d.proj_transform(*points.T, axes.get_proj())
    assert np.corrcoef(x, joints[:, 2])[0, 1] > 0.7, "what is farther away stands farther right"
    assert np.corrcoef(y, joints[:, 1])[0, 1] < -0.9, "up stays up"


def test_curves_group_values_by_unit_and_survive_gaps(tmp_path):
    history = {
        "hrnet": [{"epoch": 1, "loss": 0.5, "epe2d_px": 9.0}, {"epoch": 2, "loss": 0.1}],
        "lifter": [{"epoch": 1, "loss": float("nan"), "mpjpe_true_2d_mm": 90.0, "mpjpe_detections_mm": 120.0}],
    }
    figure = plots.curves(history, tmp_path / "curves.png")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["hrnet: loss", "hrnet: error in px", "lifter: loss", "lifter: error in mm"]
    assert [len(axes.lines) for axes in figure.axes] == [1, 1, 1, 2]
    assert figure.axes[0].get_yscale() == "log"
    assert plots.curves({}).axes == []


def test_pictures_are_saved_whole_or_not_at_all(tmp_path):
    path = tmp_path / "drawn.png"
    drawn = plots.draw_skeleton(canvas(), person(), path=path)
    np.testing.assert_array_equal(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB), drawn)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"path must end in \.png or \.jpg"):
        plots.draw_skeleton(canvas(), person(), path=tmp_path / "drawn.tga")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["drawn.png"]
    assert path.read_bytes() == before


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"image must be uint8 \[H, W, 3\], got float64"):
        plots.draw_skeleton(np.zeros((5, 5, 3)), person())
    with pytest.raises(ValueError, match=r"keypoints must be \[17, 2\]"):
        plots.draw_skeleton(canvas(), np.zeros((16, 2)))
    with pytest.raises(ValueError, match=r"scores must be \[1, 17\]"):
        plots.draw_skeleton(canvas(), person(), np.zeros(16))
    with pytest.raises(ValueError, match=r"heatmaps must be \[J, h, w\]"):
        plots.heatmap_overlay(canvas(), np.zeros((4, 4)))
    with pytest.raises(ValueError, match="equally many"):
        plots.contact_sheet([], np.zeros((0, 17, 2)))
    with pytest.raises(ValueError, match="pred3d must have one row"):
        plots.predictions_figure([canvas()], None, None, person()[None], None, poses3d(2))


def test_no_display_is_asked_for():
    plots.curves({"a": [{"epoch": 1, "loss": 1.0}]})
    assert "matplotlib.pyplot" not in sys.modules
