"""What is in a pose store, in words and in a picture: a wrong joint order or unit is seen at once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from hpe_fast.data.converters.table import choose_evenly, natural, thigh_length, unit_problem
from hpe_fast.data.schema import DataError
from hpe_fast.data.store import PoseStore
from hpe_fast.skeleton import NUM_JOINTS, ROOT

_SHEET_ROWS = 16
_BAD_SHOWN = 5


def describe(store: PoseStore, problems: list[str]) -> str:
    """Counts and ranges of a pose store, and the problems that :func:`find_problems` found, for people to read.

    Example:
        >>> from hpe_fast.data.sample import bundled_sample
        >>> store = PoseStore(bundled_sample()["valid"])
        >>> print(describe(store, find_problems(store)).splitlines()[1])
        rows        300 with pictures of 128x128 pixels
    """
    height, width = store.image_size
    kind = (
        f"with pictures of {width}x{height} pixels" if store.has_images else f"without pictures, {width}x{height} units"
    )
    lines = [str(store.path), f"rows        {len(store)} {kind}"]
    lines += [_counts(name, getattr(store, name)) for name in ("subject", "action", "camera")]
    lines += _ranges(store)
    lines += [f"PROBLEM     {problem}" for problem in problems] or ["problems    none found"]
    return "\n".join(lines)


def _counts(title: str, values: list[str], shown: int = 12) -> str:
    counts = Counter(values)
    names = sorted(counts, key=natural)
    text = ", ".join(f"{name or '(none)'} {counts[name]}" for name in names[:shown])
    rest = f", ... {len(names) - shown} more" if len(names) > shown else ""
    return f"{title + 's':<11} {len(names)}: {text}{rest}"


def _ranges(store: PoseStore) -> list[str]:
    seen = store.pose2d[store.visible > 0]
    known = np.isfinite(store.pose3d).all(axis=(1, 2))
    lines = [
        f"visible     {store.visible.mean():.1%} of the joints, {store.visible.sum(1).min()} to {NUM_JOINTS} a row"
    ]
    lines += [_range("2D x, y", seen, "px of the visible joints")] if len(seen) else []
    lines += [f"3D poses    {known.mean():.1%} of the rows"]
    if known.any():
        pose3d = store.pose3d[known].astype(np.float64)
        lines += [
            _range("3D x, y, z", pose3d.reshape(-1, 3), "mm"),
            f"hip depth   {pose3d[:, ROOT, 2].min():.0f} to {pose3d[:, ROOT, 2].max():.0f} mm",
            f"thigh       {thigh_length(pose3d):.0f} mm (median)",
        ]
    return lines


def _range(title: str, points: np.ndarray, unit: str) -> str:
    pairs = zip(points.min(axis=0), points.max(axis=0), strict=True)
    return f"{title:<11} {', '.join(f'{low:.1f} to {high:.1f}' for low, high in pairs)} {unit}"


def find_problems(store: PoseStore) -> list[str]:
    """What makes a store unfit for training: wrong units, joints far outside, labels that disagree, bad pictures.

    Every picture is read and its checksum compared.

    Example:
        >>> import tempfile
        >>> from hpe_fast.data.store import PoseStoreWriter
        >>> folder = Path(tempfile.mkdtemp())
        >>> with PoseStoreWriter(folder / "poses.h5", (64, 64)) as writer:
        ...     writer.append(None, np.full((17, 2), 99.0), np.ones(17))
        >>> find_problems(PoseStore(folder / "poses.h5"))
        ['1 rows have a visible joint outside the picture, the first is row 0']
    """
    problems = [unit_problem(store.pose3d.astype(np.float64)), _projection_problem(store)]
    hidden = int((store.visible.sum(axis=1) == 0).sum())
    if hidden:
        problems.append(f"{hidden} rows have no visible joint")
    height, width = store.image_size
    outside = ~((store.pose2d >= -0.5) & (store.pose2d <= np.array([width, height]) - 0.5)).all(axis=-1)
    if (outside & (store.visible > 0)).any():
        rows = np.flatnonzero((outside & (store.visible > 0)).any(axis=1))
        problems.append(f"{len(rows)} rows have a visible joint outside the picture, the first is row {rows[0]}")
    return [problem for problem in problems if problem] + _bad_pictures(store)


def _projection_problem(store: PoseStore) -> str | None:
    """Lens distortion moves a joint by some pixels at most; a wrong order of joints or intrinsics by many more."""
    pose3d, camera = store.pose3d.astype(np.float64), store.intrinsics.astype(np.float64)[:, None]
    with np.errstate(all="ignore"):
        projected = pose3d[..., :2] / pose3d[..., 2:] * camera[..., :2] + camera[..., 2:]
    error = np.linalg.norm(projected - store.pose2d, axis=-1)[store.visible > 0]
    error = error[np.isfinite(error)]
    limit = 0.03 * max(store.image_size)
    if not len(error) or np.median(error) < limit:
        return None
    found = f"the 3D joints project {np.median(error):.1f} px (median) from the 2D joints"
    return f"{found}: joint order, camera or unit is wrong"


def _bad_pictures(store: PoseStore) -> list[str]:
    bad = []
    for row in range(len(store) if store.has_images else 0):
        try:
            store.read_jpeg(row)
        except DataError as error:
            bad.append(str(error))
    more = [f"and {len(bad) - _BAD_SHOWN} more bad pictures"] if len(bad) > _BAD_SHOWN else []
    return bad[:_BAD_SHOWN] + more


def draw_sheet(store: PoseStore, path: Path) -> list[int]:
    """Draws 16 rows, spread over subjects and actions, with their skeletons (right red, left blue), to a picture file.

    Returns:
        The rows drawn.

    Raises:
        DataError: if a picture is damaged.
        OSError: if the file cannot be written.

    Example:
        >>> import tempfile
        >>> from hpe_fast.data.store import PoseStoreWriter
        >>> folder = Path(tempfile.mkdtemp())
        >>> with PoseStoreWriter(folder / "poses.h5", (64, 64)) as writer:
        ...     writer.append(None, np.full((17, 2), 99.0), np.ones(17))
        >>> draw_sheet(PoseStore(folder / "poses.h5"), folder / "sheet.png")
        [0]
    """
    from hpe_fast.plots import contact_sheet

    rows = choose_evenly(store.subject, store.action, _SHEET_ROWS)
    blank = np.full((*store.image_size, 3), 235, np.uint8)
    pictures = [store.image(row) if store.has_images else blank for row in rows]
    contact_sheet(pictures, store.pose2d[rows], store.visible[rows], columns=4, cell=256, path=path)
    return rows
