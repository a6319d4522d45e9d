"""The DALI pipeline, the same for CPU and GPU: decode, move pixels, occlude. It draws nothing; see augment.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hpe_fast.data.geometry import to_corner_matrix, to_corner_points
from hpe_fast.data.schema import DataError

if TYPE_CHECKING:
    from nvidia.dali import Pipeline
    from nvidia.dali.data_node import DataNode

    from hpe_fast.data.augment import Draw
    from hpe_fast.data.store import PoseStore

_CHECK_BATCH = 128


class Steps(NamedTuple):
    """What a pipeline does after decoding.

    Attributes:
        size: ``(height, width)`` of the output.
        warp: whether pixels move; without, the output has the size of the input.
        nearest: sample the nearest pixel instead of interpolating linearly.
        erase: whether occluders are drawn.
        fill: grey level outside of the picture.
    """

    size: tuple[int, int]
    warp: bool = False
    nearest: bool = False
    erase: bool = False
    fill: float = 0.0


def build_pipeline(
    source: Callable[[Any], Sequence], steps: Steps, batch_size: int, threads: int, device_id: int | None
) -> Pipeline:
    """A pipeline whose one output is uint8 [B,H,W,3] on the device.

    Args:
        source: called with DALI's ``BatchInfo`` for each batch, returns what :func:`pipeline_inputs` does; its
            ``StopIteration`` ends the epoch.
        steps: what to do after decoding.
        batch_size: largest batch.
        threads: of the CPU.
        device_id: number of the GPU, ``None`` for the CPU.

    Raises:
        ImportError: where there is no DALI.
        RuntimeError: from DALI, for a GPU that is not there.
    """
    dali = _import_dali()
    from nvidia.dali import fn, types

    count = 1 + steps.warp + 3 * steps.erase
    # exec_dynamic: only that executor leaves an output alone while a tensor looks at it.
    pipeline = dali.Pipeline(batch_size, threads, device_id, exec_dynamic=True, prefetch_queue_depth=2)
    with pipeline:
        inputs = fn.external_source(
            source=source,
            num_outputs=count,
            batch=True,
            batch_info=True,
            dtype=[types.UINT8] + [types.FLOAT] * (count - 1),
            ndim=[1] + [2] * steps.warp + [2, 2, 1] * steps.erase,
        )
        pipeline.set_outputs(_images(*inputs, steps=steps, decoder="cpu" if device_id is None else "mixed"))
    pipeline.build()
    return pipeline


def pipeline_inputs(steps: Steps, jpegs: list[bytes], drawn: Draw) -> tuple:
    """A batch as the pipeline of these steps takes it."""
    inputs: list = [[np.frombuffer(jpeg, np.uint8) for jpeg in jpegs]]
    if steps.warp:
        inputs.append(to_corner_matrix(drawn.matrix))
    if steps.erase:
        # DALI truncates a rectangle's start, so it gets whole numbers.
        start = np.round(to_corner_points(drawn.occluder_center) - drawn.occluder_shape / 2)
        inputs += [start, drawn.occluder_shape, drawn.occluder_color]
    return tuple(inputs)


def _images(jpegs: DataNode, *inputs: DataNode, steps: Steps, decoder: str) -> DataNode:
    from nvidia.dali import fn, types

    # Fancy upsampling: the GPU's chroma as libjpeg has it. Orientation: labels belong to the stored pixels.
    # Hardware decoder: a sample's place in the batch would decide whether it goes there, and so its bits.
    images = fn.decoders.image(
        jpegs,
        device=decoder,
        output_type=types.RGB,
        jpeg_fancy_upsampling=True,
        adjust_orientation=False,
        hw_decoder_load=0.0,
    )
    return change_pixels(images, inputs, steps)


def change_pixels(images: DataNode, inputs: Sequence[DataNode], steps: Steps) -> DataNode:
    """Move and occlude the pixels of pictures; ``inputs`` are those of :func:`pipeline_inputs` after the first."""
    from nvidia.dali import fn, types

    inputs = list(inputs)
    if steps.warp:
        images = fn.warp_affine(
            images,
            matrix=inputs.pop(0),
            inverse_map=False,  # input to output; DALI's documentation of this argument has it the wrong way round
            size=list(steps.size),
            fill_value=steps.fill,
            interp_type=types.INTERP_NN if steps.nearest else types.INTERP_LINEAR,
        )
    if steps.erase:
        start, shape, color = inputs
        images = fn.erase(images, anchor=start, shape=shape, axis_names="WH", fill_value=color)
    return images


def undecodable(store: PoseStore, rows: np.ndarray) -> dict[int, str]:
    """Rows whose picture cannot be read or decoded (on the CPU), each with what is wrong.

    One thread decodes: with more, DALI 2.4 may crash the process where a picture is refused while another is at work.

    Example:
        >>> undecodable(None, np.array([], np.int64))
        {}
    """
    bad: dict[int, str] = {}
    for start in range(0, len(rows), _CHECK_BATCH):
        jpegs = {}
        for row in rows[start : start + _CHECK_BATCH].tolist():
            try:
                jpegs[row] = store.read_jpeg(row)
            except DataError as error:
                bad[row] = str(error)
        for row in _rejected(jpegs):
            bad[row] = f"{store.where(row)}: cannot be decoded"
    return bad


def _rejected(jpegs: dict[int, bytes]) -> list[int]:
    """Which of these pictures DALI cannot decode, by halving: it does not always say which it was."""
    if not jpegs or _decodes(list(jpegs.values())):
        return []
    rows = list(jpegs)
    if len(rows) == 1:
        return rows
    middle = len(rows) // 2
    halves = rows[:middle], rows[middle:]
    return [row for half in halves for row in _rejected({row: jpegs[row] for row in half})]


def _decodes(jpegs: list[bytes]) -> bool:
    steps = Steps(size=(0, 0))
    batches = iter([([np.frombuffer(jpeg, np.uint8) for jpeg in jpegs],)])
    pipeline = build_pipeline(lambda info: next(batches), steps, len(jpegs), 1, None)
    try:
        pipeline.run()
    except RuntimeError:
        return False
    return True


def _import_dali() -> Any:
    try:
        import nvidia.dali
    except ImportError as error:
        wanted = "pip install nvidia-dali-cuda130 (or nvidia-dali-cuda120), which exist for Linux only"
        raise ImportError(f"training on pictures needs NVIDIA DALI: {wanted} ({error})") from error
    return nvidia.dali
