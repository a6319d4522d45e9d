"""Human3.6M's cameras, from whichever file of them is at hand."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpe_fast.data.converters.unpickle import load_pickle
from hpe_fast.data.schema import DataError


@dataclass(frozen=True)
class Camera:
    """A pinhole camera in the world.

    Args:
        rotation: ``[3, 3]``, its columns are the camera's axes in the world.
        position: ``[3]`` mm.
        intrinsics: ``[4]`` fx, fy, cx, cy in px.
    """

    rotation: np.ndarray
    position: np.ndarray
    intrinsics: np.ndarray

    def from_world(self, points: np.ndarray) -> np.ndarray:
        """World points ``[..., 3]`` mm in the camera's frame: ``R^T (x - position)``.

        Example:
            >>> camera = Camera(np.eye(3), np.array([0, 0, -4000.0]), np.array([1000.0, 1000, 500, 500]))
            >>> camera.from_world(np.zeros(3)).tolist()
            [0.0, 0.0, 4000.0]
        """
        return (points - self.position) @ self.rotation

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixels ``[..., 2]`` of points in the camera's frame, without lens distortion."""
        return points[..., :2] / points[..., 2:] * self.intrinsics[:2] + self.intrinsics[2:]


Cameras = dict[tuple[str, str], Camera]


def load_cameras(path: Path) -> Cameras:
    """Cameras by (subject, camera's name) from one of three kinds of file.

    * ``cameras.pkl`` of mmpose: ``{("S1", "54138969"): {"R", "T" in metres, "f", "c", ...}}``;
    * ``h36m_dataset.py`` of VideoPose3D, whose two tables are read as literals (the file is not run);
    * JSON: ``{"S1": {"54138969": {"R": 3x3, "T": [x, y, z], "f": [fx, fy], "c": [cx, cy]}}}``, R and T as in mmpose but
      T in millimetres.

    Raises:
        DataError: if the file is none of these.
        OSError: if it cannot be read.
    """
    readers: dict[str, Callable[[Path], Cameras]] = {
        ".pkl": _from_mmpose,
        ".py": _from_videopose3d,
        ".json": _from_json,
    }
    if path.suffix not in readers:
        raise DataError(f"{path}: cameras are read from {sorted(readers)} files")
    try:
        cameras = readers[path.suffix](path)
    except DataError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, SyntaxError) as error:
        raise DataError(f"{path}: not a file of cameras ({type(error).__name__}: {error})") from error
    for name, camera in cameras.items():
        _check(camera, f"{path}: camera {name}")
    return cameras


def _check(camera: Camera, where: str) -> None:
    if not np.allclose(camera.rotation @ camera.rotation.T, np.eye(3), atol=1e-3) or np.linalg.det(camera.rotation) < 0:
        raise DataError(f"{where}: R is not a rotation")
    if not 100 < np.linalg.norm(camera.position) < 100_000:
        raise DataError(f"{where}: stands {np.linalg.norm(camera.position):.4g} mm from the origin: wrong unit")
    if not (camera.intrinsics[:2] > 0).all():
        raise DataError(f"{where}: focal length {camera.intrinsics[:2]}")


def _camera(entry: Mapping[str, Any], millimetres: float) -> Camera:
    values = {key: np.asarray(entry[key], np.float64) for key in ("R", "T", "f", "c")}
    return Camera(
        values["R"].reshape(3, 3),
        values["T"].reshape(3) * millimetres,
        np.concatenate([values["f"].reshape(2), values["c"].reshape(2)]),
    )


def _from_mmpose(path: Path) -> Cameras:
    return {(str(subject), str(name)): _camera(entry, 1000) for (subject, name), entry in load_pickle(path).items()}


def _from_json(path: Path) -> Cameras:
    content = json.loads(path.read_text())
    return {(subject, name): _camera(e, 1) for subject, cameras in content.items() for name, e in cameras.items()}


def _from_videopose3d(path: Path) -> Cameras:
    tables = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id.startswith("h36m_cameras_")
    }
    lenses = tables["h36m_cameras_intrinsic_params"]
    cameras = {}
    for subject, entries in tables["h36m_cameras_extrinsic_params"].items():
        for lens, entry in zip(lenses, entries, strict=True):
            if entry:  # subjects without published poses have none
                intrinsics = np.array([*lens["focal_length"], *lens["center"]], np.float64)
                rotation = rotation_of_quaternion(np.array(entry["orientation"], np.float64))
                position = np.array(entry["translation"], np.float64).reshape(3)
                cameras[subject, lens["id"]] = Camera(rotation, position, intrinsics)
    return cameras


def rotation_of_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """``[3, 3]`` rotation of a quaternion ``[4]`` (w, x, y, z), which need not be of length 1.

    Example:
        >>> rotation_of_quaternion(np.array([1.0, 0, 0, 1])).round(12).tolist()  # a quarter turn about z
        [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    w, *axis = quaternion / np.linalg.norm(quaternion)
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross
