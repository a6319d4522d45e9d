"""MakeHuman's clothes, hair and skins, as its CC0 release has them: OBJ meshes, bound to the body by ``.mhclo`` files.

A row of an ``.mhclo`` file ties a vertex of the garment to three vertices of the body (weights and an offset), so that
a garment fits every shape.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpe_fast.synthetic.body import Body, Shape, strongest
from hpe_fast.synthetic.parts import connected, vertex_normals

TEXELS = 384
#: Components smaller than this share of a garment's area belong to the nearest larger one.
_SMALL = 0.08
#: How far a piece's mirror image may be from another piece.
_PAIR_METRES = 0.04
_DECIMETRES = 10.0


@dataclass(frozen=True)
class Binding:
    """How a garment hangs on the body: three body vertices [N,3], weights [N,3] and an offset [N,3] for each of its
    own; ``scale``: axis -> (two body vertices, the distance they had); ``hidden``: body vertices it covers; ``mesh``:
    the OBJ file."""

    index: np.ndarray
    weight: np.ndarray
    offset: np.ndarray
    scale: dict[str, tuple[int, int, float]]
    hidden: np.ndarray
    mesh: Path


class Garment:
    """One piece of clothing or hair.

    Raises:
        ValueError: naming the file that cannot be used.
    """

    def __init__(self, path: Path, body: Body, slot: int, median: float) -> None:
        self.name, self.slot, self.median = path.stem, slot, median
        self._binding = binding = read_binding(path)
        count, texture, self.faces, texture_faces = read_mesh(binding.mesh)
        if count != len(binding.index) or binding.index.max() >= len(body.weights):
            raise ValueError(f"{path}: binds {len(binding.index)} vertices, {binding.mesh.name} has {count}")
        self.uv = texture[texture_faces].astype(np.float32)
        weights = (body.weights[binding.index] * binding.weight[:, :, None]).sum(axis=1)
        self.bone, self.weight = strongest(np.clip(weights, 1e-9, None))
        self.hidden = binding.hidden
        self.piece, self.pieces = self._pieces(body)

    def fit(self, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
        """Vertices and normals float32 [N,3] on a body at rest, metres."""
        binding = self._binding
        body = np.stack([shape.vertices[:, 0], shape.vertices[:, 2], -shape.vertices[:, 1]], axis=1) * _DECIMETRES
        scale = np.ones(3)
        for axis, (a, b, distance) in binding.scale.items():
            i = "xyz".index(axis)
            scale[i] = abs(body[a, i] - body[b, i]) / distance
        at = np.einsum("nkc,nk->nc", body[binding.index], binding.weight) + binding.offset * scale
        at = np.stack([at[:, 0], -at[:, 2], at[:, 1]], axis=1).astype(np.float32) / np.float32(_DECIMETRES)
        return at, vertex_normals(at, self.faces)

    def _pieces(self, body: Body) -> tuple[np.ndarray, int]:
        """Which piece (shirt, trousers, belt ...) each face belongs to, int32 [F], and how many there are."""
        at, _ = self.fit(body.shape({}, np.zeros(3)))
        component = connected(len(at), self.faces)[self.faces[:, 0]]
        a, b, c = (at[self.faces[:, corner]] for corner in range(3))
        area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
        _, inverse = np.unique(component, return_inverse=True)
        sizes = np.bincount(inverse, area)
        middles = np.stack([np.bincount(inverse, area * a[:, i]) / sizes for i in range(3)], axis=1)
        large = np.flatnonzero(sizes > _SMALL * sizes.sum())
        nearest = np.linalg.norm(middles[:, None] - middles[large], axis=2).argmin(axis=1)
        nearest[large] = np.arange(len(large))
        # Left and right of a pair look alike.
        mirrored = np.linalg.norm(middles[large, None] * [-1, 1, 1] - middles[large], axis=2) < _PAIR_METRES
        twin = np.where(mirrored.any(axis=1), mirrored.argmax(axis=1), np.arange(len(large)))
        alike, piece = np.unique(np.minimum(twin, np.arange(len(large))), return_inverse=True)
        return piece[nearest[inverse]].astype(np.int32), len(alike)


def read_binding(path: Path) -> Binding:
    """An ``.mhclo`` file.

    Raises:
        ValueError: naming the file, if it is none.
    """
    scale: dict[str, tuple[int, int, float]] = {}
    rows: list[list[float]] = []
    hidden: set[int] = set()
    section, mesh = "", ""
    try:
        for line in path.read_text(errors="ignore").splitlines():
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if words[0] in ("x_scale", "y_scale", "z_scale"):
                scale[words[0][0]] = (int(words[1]), int(words[2]), float(words[3]))
            elif words[0] == "obj_file":
                mesh = words[1]
            elif words[0] in ("verts", "delete_verts"):
                section = words[0]
            elif section == "verts" and re.match(r"-?\d", words[0]):
                rows.append(
                    [int(words[0]), 0, 1, 1, 0, 0, 0, 0, 0] if len(words) == 1 else [float(w) for w in words[:9]]
                )
            elif section == "delete_verts" and words[0].isdigit():
                for first, _, last in re.findall(r"(\d+)(\s*-\s*(\d+))?", line):
                    hidden.update(range(int(first), int(last or first) + 1))
        table = np.array(rows).reshape(-1, 9)
        index = table[:, :3].astype(int)
        if not len(rows) or not mesh:
            raise ValueError("no vertices, or no obj_file")
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path}: no .mhclo file ({error})") from error
    return Binding(index, table[:, 3:6], table[:, 6:9], scale, np.array(sorted(hidden), int), path.parent / mesh)


def read_mesh(path: Path) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """An OBJ file: count of vertices, texture coordinates [T,2], and triangles int32 [F,3] of both.

    Raises:
        ValueError: naming the file, if it cannot be used.
    """
    count, texture, faces, texture_faces = 0, [], [], []
    try:
        for line in path.read_text(errors="ignore").splitlines():
            words = line.split()
            if words and words[0] == "v":
                count += 1
            elif words and words[0] == "vt":
                texture.append([float(words[1]), float(words[2])])
            elif words and words[0] == "f":
                corners = [word.split("/") for word in words[1:]]
                for k in range(1, len(corners) - 1):
                    triangle = [corners[0], corners[k], corners[k + 1]]
                    faces.append([int(corner[0]) - 1 for corner in triangle])
                    texture_faces.append([int(corner[1]) - 1 for corner in triangle])
    except (OSError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: no OBJ file with texture coordinates ({error})") from error
    if not faces:
        raise ValueError(f"{path}: no faces")
    for name, index, size in (("vertex", faces, count), ("texture coordinate", texture_faces, len(texture))):
        if not 0 <= min(map(min, index)) <= max(map(max, index)) < size:
            raise ValueError(f"{path}: a face names a {name} that is not among its {size}")
    return count, np.array(texture), np.array(faces, np.int32), np.array(texture_faces, np.int32)


def read_texture(path: Path) -> np.ndarray:
    """A picture as uint8 [TEXELS, TEXELS, 4], RGBA as stored.

    Raises:
        ValueError: naming the file, if it cannot be decoded.
    """
    import cv2

    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise ValueError(f"{path}: cannot be decoded")
    if picture.ndim == 2:
        picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)
    if picture.shape[2] == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_BGR2BGRA)
    small = cv2.resize(picture, (TEXELS, TEXELS), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(small[..., [2, 1, 0, 3]])
