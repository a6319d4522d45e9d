"""Small folders in the layouts that the synthesizer reads: captures, garments, a panorama."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from hpe_fast.synthetic.builtin_poses import builtin_clips


def write_bvh(path: Path, angles: np.ndarray) -> list[str]:
    """A file of the CMU skeleton; ``angles`` [T,K,3] degrees about Z, Y, X of each joint. Returns the joints' names."""
    clip = builtin_clips()["stand"][0]
    lines = ["HIERARCHY"]

    def add(joint: int) -> None:
        lines.append(f"{'ROOT' if clip.parents[joint] < 0 else 'JOINT'} {clip.names[joint]}")
        lines.append("{")
        lines.append("OFFSET {} {} {}".format(*clip.offsets[joint]))
        position = "6 Xposition Yposition Zposition" if clip.parents[joint] < 0 else "3"
        lines.append(f"CHANNELS {position} Zrotation Yrotation Xrotation")
        order.append(joint)
        children = [child for child, parent in enumerate(clip.parents) if parent == joint]
        for child in children:
            add(child)
        if not children:
            lines.extend(["End Site", "{", "OFFSET 0 1 0", "}"])
        lines.append("}")

    order: list[int] = []
    add(0)
    lines += ["MOTION", f"Frames: {len(angles)}", "Frame Time: 0.0333333"]
    for frame in angles:
        lines.append(" ".join(["0 0 0", *(f"{value:.6f}" for joint in order for value in frame[joint])]))
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(lines) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return clip.names


def write_captures(folder: Path, recordings: int = 9) -> Path:
    """Clips of two actions; the first recording was cut into two parts."""
    rng = np.random.default_rng(0)
    names = [f"walk/{k:02d}_01.bvh.gz" for k in range(recordings)]
    names += ["walk/20_01_a.bvh", "walk/20_01_b.bvh"] + [f"static/stand_{w}_left.bvh" for w in ("a1", "b2", "c3")]
    for name in names:
        write_bvh(folder / name, rng.normal(0, 5, (3, 25, 3)))
    return folder


def write_garment(folder: Path, name: str, first: int = 2000) -> Path:
    """A strip of cloth on 40 vertices of the body, in two pieces, with a texture."""
    import cv2

    folder.mkdir(parents=True, exist_ok=True)
    lines = ["# a garment", f"obj_file {name}.obj", "x_scale 5399 11998 1.4800", "verts 0"]
    for k in range(20):
        lines.append(str(first + k))
    for k in range(20, 40):
        a, b, c = first + k, first + k + 1, first + k + 2
        lines.append(f"{a} {b} {c} 0.5 0.3 0.2 0.01 0.0 0.02")
    lines += ["", "delete_verts", f"{first} - {first + 5} {first + 9}"]
    path = folder / f"{name}.mhclo"
    path.write_text("\n".join(lines))
    mesh = [f"v {k} 0 0" for k in range(40)] + [f"vt {k / 40} {k % 2}" for k in range(40)]
    mesh += [f"f {k + 1}/{k + 1} {k + 2}/{k + 2} {k + 3}/{k + 3}" for k in range(38) if k not in (18, 19)]
    (folder / f"{name}.obj").write_text("\n".join(mesh))
    picture = np.random.default_rng(1).integers(0, 256, (32, 32, 4), np.uint8)
    cv2.imwrite(str(folder / f"{name}_diffuse.png"), picture)
    return path


def write_assets(folder: Path) -> Path:
    """Five outfits, three pairs of shoes, hair, brows, two skins and three panoramas."""
    import cv2

    for k in range(5):
        write_garment(folder / "base" / "clothes" / f"male_suit{k}", f"male_suit{k}")
    for k in range(3):
        write_garment(folder / "base" / "clothes" / f"shoes{k}", f"shoes{k}", first=11000)
    write_garment(folder / "base" / "hair" / "bob01", "bob01", first=900)
    write_garment(folder / "base" / "eyebrows" / "brow", "brow", first=300)
    rng = np.random.default_rng(2)
    skins = folder / "base" / "skins"
    skins.mkdir(parents=True)
    for sex in ("male", "female"):
        picture = rng.integers(100, 200, (16, 16, 3), np.uint8)
        cv2.imwrite(str(skins / f"young_lightskinned_{sex}_diffuse.png"), picture)
    for k in range(3):
        (folder / "sky").mkdir(exist_ok=True)
        cv2.imwrite(str(folder / "sky" / f"place{k}.hdr"), rng.uniform(0, 2, (32, 64, 3)).astype(np.float32))
    return folder
