"""From uint8 pictures to 3D joints without leaving the device: ``load``, ``infer`` and the pipeline they use."""

from hpe_fast.pipeline.exporting import export
from hpe_fast.pipeline.pipeline import REFINE, PosePipeline, Poses
from hpe_fast.pipeline.speed import fold_batchnorm
from hpe_fast.pipeline.weights import LOOKS, infer, load

__all__ = ["LOOKS", "REFINE", "PosePipeline", "Poses", "export", "fold_batchnorm", "infer", "load"]
