"""Runs the kernels: from parts, bones, camera and light to radiance and depth, on the CPU or a CUDA device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hpe_fast.synthetic.camera import Camera
from hpe_fast.synthetic.parts import Part
from hpe_fast.synthetic.scenery import Backdrop, Light

#: Samples along a pixel's side.
SAMPLES = 2
_SHADOW_MAP = 384
#: Radius of what the shadow map shows, metres: a person and what is near.
_SHADOW_REACH = 1.7
_MAX_BALLS = 64


@dataclass(frozen=True)
class Layers:
    """A picture before it is put together: radiance [H,W,3] of what is in front (already times its cover [H,W]) and
    behind, what shadows leave of the latter [H,W], and nearness (1 / metres) of the front's samples, 0 for none."""

    front: np.ndarray
    cover: np.ndarray
    back: np.ndarray
    keep: np.ndarray
    nearness: np.ndarray


class Renderer:
    """Kernels with the textures of a wardrobe on a device.

    Args:
        textures: uint8 [T,n,n,4].
        size: height and width of the pictures in pixels.
        device: ``cpu`` or ``cuda``, ``cuda:1`` ...

    Raises:
        ValueError: if there is no such device.
    """

    def __init__(self, textures: np.ndarray, size: int, device: str) -> None:
        import warp

        warp.config.quiet = True
        try:
            warp.init()
            self._device = warp.get_device(device)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"--device {device}: {error}") from error
        self._warp, self._size = warp, size
        self._textures = self._array(textures, warp.uint8)
        self._panoramas: dict[str, Any] = {}
        self._depth = self._zeros((size * SAMPLES, size * SAMPLES), warp.int64)
        self._shadow = self._zeros((_SHADOW_MAP, _SHADOW_MAP), warp.int64)
        self._front, self._back = (self._zeros((size, size), warp.vec3) for _ in range(2))
        self._cover, self._keep = (self._zeros((size, size), warp.float32) for _ in range(2))

    def pose(self, part: Part, turns: np.ndarray, shifts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Posed vertices and normals float32 [N,3] for bones turned and shifted ([J,3,3], [J,3])."""
        from hpe_fast.synthetic import kernels

        warp, count = self._warp, len(part.rest)
        position, normal = (self._zeros((count,), warp.vec3) for _ in range(2))
        self._launch(
            kernels.pose_vertices,
            count,
            rest=self._array(part.rest, warp.vec3),
            rest_normal=self._array(part.normal, warp.vec3),
            swell=self._array(part.swell, warp.float32),
            bone=self._array(part.bone, warp.int32),
            weight=self._array(part.weight, warp.float32),
            turn=self._array(turns.astype(np.float32), warp.mat33),
            shift=self._array(shifts.astype(np.float32), warp.vec3),
            position=position,
            normal=normal,
        )
        return position.numpy(), normal.numpy()

    def render(
        self,
        scene: Part,
        position: np.ndarray,
        normal: np.ndarray,
        balls: np.ndarray,
        camera: Camera,
        light: Light,
        backdrop: Backdrop,
        person: np.ndarray,
        seed: int,
    ) -> Layers:
        """Draw a scene whose vertices were posed: ``position`` and ``normal`` [N,3].

        Args:
            scene: all parts in one.
            position, normal: of its vertices.
            balls: [B,4] x, y, z, radius: spheres that stand for the person where light comes from all around.
            camera, light, backdrop: how it is seen.
            person: [3], the person's middle.
            seed: of the shadows' noise.
        """
        from hpe_fast.synthetic import kernels

        warp, count = self._warp, len(position)
        table = scene.materials if backdrop.room is None else np.concatenate([scene.materials, backdrop.room])
        known = {
            "position": self._array(position, warp.vec3),
            "normal": self._array(normal, warp.vec3),
            "rest": self._array(scene.rest, warp.vec3),
            "place": self._array(scene.place, warp.vec3),
            "sky": self._zeros((count,), warp.float32),
            "screen": self._zeros((count,), warp.vec3),
            "triangle": self._array(scene.faces, warp.int32),
            "uv": self._array(scene.uv, warp.vec2),
            "kind": self._array(scene.kind, warp.int32),
            "material": self._array(table, warp.float32),
            "texture": self._textures,
            "balls": self._array(balls.astype(np.float32)[:_MAX_BALLS], warp.vec4),
            "eye": warp.vec3(*camera.eye),
            "axes": warp.mat33(*camera.axes.ravel()),
            "lens": warp.vec4(*camera.lens),
            "heading": float(np.arctan2(camera.axes[1, 2], camera.axes[0, 2])),
            "sh": self._array(light.sh, warp.vec3),
            "env": self._panorama(light),
            "yaw": float(light.yaw),
            "sun": warp.vec3(*light.sun),
            "sun_light": warp.vec3(*light.sun_light),
            "sun_share": float(backdrop.sun_share),
            "spread": float(light.spread),
            "person": warp.vec3(*person),
            "floor": float(backdrop.floor),
            "wide": float(backdrop.wide),
            "walls": self._array(backdrop.walls, warp.vec4),
            "room": -1 if backdrop.room is None else len(scene.materials),
            "scale": _SHADOW_MAP / (2 * _SHADOW_REACH),
            "half": _SHADOW_MAP / 2,
            "seed": seed,
            "shadow": self._shadow,
            "front": self._front,
            "back": self._back,
            "cover": self._cover,
            "keep": self._keep,
            **self._sun_frame(light, person),
        }
        triangles, grid = len(scene.faces), (self._size, self._size)
        self._shadow.zero_()
        self._depth.zero_()
        self._launch(kernels.ambient, count, **known)
        self._launch(kernels.project_sun, count, **known)
        self._launch(kernels.rasterise, triangles, buffer=self._shadow, **known)
        self._launch(kernels.project, count, samples=float(SAMPLES), **known)
        self._launch(kernels.rasterise, triangles, buffer=self._depth, **known)
        self._launch(kernels.shade, grid, buffer=self._depth, samples=SAMPLES, **known)
        self._launch(kernels.backdrop, grid, **known)
        depth = (self._depth.numpy() >> 32).astype(np.float32) / np.float32(kernels.NEARNESS)
        layers = (array.numpy().copy() for array in (self._front, self._cover, self._back, self._keep))
        return Layers(*layers, depth)

    def _sun_frame(self, light: Light, person: np.ndarray) -> dict[str, Any]:
        right = np.cross(light.sun, [0, 0, 1.0] if abs(light.sun[2]) < 0.95 else [1.0, 0, 0])
        right /= np.linalg.norm(right)
        vectors = {"centre": person, "right": right, "up": np.cross(right, light.sun)}
        return {name: self._warp.vec3(*vector) for name, vector in vectors.items()}

    def _panorama(self, light: Light) -> Any:
        name = light.panorama.name
        if name not in self._panoramas:
            self._panoramas[name] = self._array(light.panorama.radiance, self._warp.vec3)
        return self._panoramas[name]

    def _array(self, values: np.ndarray, dtype: Any) -> Any:
        return self._warp.array(np.ascontiguousarray(values), dtype=dtype, device=self._device, copy=False)

    def _zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self._warp.zeros(shape, dtype=dtype, device=self._device)

    def _launch(self, kernel: Any, shape: Any, **known: Any) -> None:
        """Run a kernel with the values named as its arguments are; others are ignored."""
        inputs = [known[argument.label] for argument in kernel.adj.args]
        self._warp.launch(kernel, dim=shape, inputs=inputs, device=self._device)
