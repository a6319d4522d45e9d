"""The HTML page: well formed, nothing in it that asks a network, its data are the poses; and where there is a browser,
it turns."""

import base64
import html.parser
import json
import re
import shutil
import subprocess

import cv2
import numpy as np
import pytest
import torch

from hpe_fast import plots
from hpe_fast.plots.images import LEFT_COLOR, RIGHT_COLOR
from hpe_fast.skeleton import EDGES

VOID = {"meta", "img", "input", "br", "link", "hr"}


class Tags(html.parser.HTMLParser):
    """Checks that elements are closed in order, and keeps attributes and the text of each script."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.attributes, self.texts = [], [], [], {}
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, *pair) for pair in attributes]
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append((tag, dict(attributes).get("id", tag)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1][1]] = self.texts.get(self.open[-1][1], "") + data


def poses(count=3, seed=0):
    joints = np.random.default_rng(seed).normal(0, 300, (count, 17, 3))
    return joints - joints[:, :1]


def content(page):
    return json.loads(Tags(page).texts["data"])


def test_the_page_is_well_formed_and_asks_nobody():
    page = plots.pose_page(poses(), poses(), images=[np.zeros((20, 30, 3), np.uint8)] * 3, title="A & <B>")
    tags = Tags(page)
    assert page.startswith("<!DOCTYPE html>")
    assert not tags.open
    assert len(tags.ids) == len(set(tags.ids))
    assert tags.texts["title"] == tags.texts["h1"] == "A & <B>"
    without_pictures = re.sub(r"data:image/jpeg;base64,[A-Za-z0-9+/=]*", "", page)
    assert not re.search(r"[a-z]+://|//[a-z]|url\(|@import|\bfetch\b|XMLHttpRequest|import\(", without_pictures)
    assert not [name for _, name, _ in tags.attributes if name in ("src", "href", "action")]
    policy = next(
        value for tag, name, value in tags.attributes if (tag, name) == ("meta", "content") and "src" in value
    )
    assert "default-src 'none'" in policy
    assert "{{" not in page
    used = set(re.findall(r'element\("([\w-]+)"\)', page))
    assert used
    assert used <= set(tags.ids)


def test_the_poses_come_back():
    joints, truth = poses(), poses(seed=1)
    joints[1, 4, 2] = np.nan
    truth[2] = np.nan
    found = content(plots.pose_page(torch.tensor(joints), truth, labels=["a", "</script><b>", 'ü"'], rate=25))
    assert [pose["label"] for pose in found["poses"]] == ["a", "</script><b>", 'ü"']
    assert found["poses"][1]["joints"][4] is None
    assert found["poses"][2]["truth"] is None
    for i, pose in enumerate(found["poses"]):
        for joint, expected in zip(pose["joints"], joints[i], strict=True):
            assert joint is None or joint == pytest.approx(expected, abs=0.051)
    np.testing.assert_allclose(found["poses"][0]["truth"], truth[0], atol=0.051)
    assert [tuple(bone[:2]) for bone in found["bones"]] == list(EDGES)
    assert found["bones"][0][2] == f"rgb{RIGHT_COLOR}"
    assert found["rate"] == 25


def test_pictures_travel_in_the_page():
    picture = np.full((100, 600, 3), (200, 30, 60), np.uint8)
    found = content(plots.pose_page(poses(2), images=[picture, None]))
    assert found["poses"][1]["picture"] is None
    data = base64.b64decode(found["poses"][0]["picture"].partition(",")[2])
    decoded = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert decoded.shape == (43, 256, 3)
    assert decoded[20, 100].tolist() == pytest.approx([200, 30, 60], abs=6)


def test_bad_arguments_are_named_and_nothing_is_half_written(tmp_path):
    for arguments, message in (
        ({"joints3d": np.zeros((17, 3))}, r"joints3d must be \[N, 17, 3\], got \[17, 3\]"),
        ({"joints3d": np.zeros((0, 17, 3))}, "at least one pose"),
        ({"joints3d": poses(), "labels": ["a"]}, "labels must have one entry for each of the 3 poses, got 1"),
        ({"joints3d": poses(), "true3d": poses(2)}, "true3d must have one entry"),
        ({"joints3d": poses(), "rate": 0}, "rate must be"),
        ({"joints3d": poses(1), "images": [np.zeros((4, 4))]}, r"image must be uint8"),
    ):
        with pytest.raises(ValueError, match=message):
            plots.pose_page(**arguments, path=tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []
    page = plots.pose_page(poses(1), path=tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page


BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "chrome",
    "chrome-headless-shell",
    "chromium-headless-shell",
)
#: Put behind the page's own script: looks, drags with a pointer, zooms, goes on to the next pose, and looks again.
PROBE = """
<pre id="seen"></pre><script>
const counts = () => {
  const pixels = pen.getImageData(0, 0, canvas.width, canvas.height).data, left = { red: [], blue: [] };
  for (let i = 0; i < pixels.length; i += 4) {
    if (pixels[i + 3] < 250) continue;
    const red = pixels[i] > 150 && pixels[i + 2] < 100, blue = pixels[i + 2] > 150 && pixels[i] < 100;
    if (red || blue) left[red ? "red" : "blue"].push(i / 4 % canvas.width - canvas.width / 2);
  }
  return Object.fromEntries(Object.entries(left).map(([k, v]) => [k, v.reduce((a, b) => a + b, 0) / v.length]));
};
const pointer = (type, x, y) => canvas.dispatchEvent(new PointerEvent(type, { clientX: x, clientY: y, pointerId: 1 }));
const look = () => ({ ...JSON.parse(document.body.dataset.state), ...counts(), label: element("label").textContent });
const seen = [];
document.querySelector("[data-view=front]").click(); seen.push(look());
pointer("pointerdown", 300, 200); pointer("pointermove", 400, 200); pointer("pointermove", 614, 220);
pointer("pointerup", 614, 220); pointer("pointermove", 100, 100); seen.push(look());
canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: -100, cancelable: true })); seen.push(look());
element("next").click(); seen.push(look());
element("seen").textContent = JSON.stringify(seen);
</script>
"""


def browser():
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.mark.skipif(browser() is None, reason="no Chromium or Chrome is installed")
def test_it_turns_in_a_browser(tmp_path):
    joints = np.zeros((2, 17, 3))
    joints[:, [4, 5, 6, 11, 12, 13], 0] = 300  # the left side is on the right in the picture
    joints[:, [1, 2, 3, 14, 15, 16], 0] = -300
    joints[:, :, 1] = np.linspace(-600, 600, 17)
    page = plots.pose_page(joints, labels=["first", "second"])
    (tmp_path / "page.html").write_text(page.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [browser(), *flags, "--virtual-time-budget=3000", "--dump-dom", (tmp_path / "page.html").as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    front, turned, nearer, second = json.loads(Tags(result.stdout).texts["seen"])
    assert (front["yaw"], front["pitch"], front["pose"], front["label"]) == (0, 0, 0, "1 of 2: first")
    assert front["blue"] > 20
    assert front["red"] < -20, f"right is {RIGHT_COLOR}, left is {LEFT_COLOR}"
    assert (turned["yaw"], turned["pitch"]) == pytest.approx((-3.14, 0.2))
    assert turned["blue"] < -20, "seen from behind left is left"
    assert turned["red"] > 20
    assert nearer["zoom"] == pytest.approx(np.exp(0.1))
    assert nearer["red"] > turned["red"]
    assert (second["pose"], second["label"]) == (1, "2 of 2: second")
