"""vqgen: two-stage image generation. `load` a run, then sample, reconstruct or encode."""

from vqgen.contracts import Condition, FeatureSpec, Known, TokenSpec
from vqgen.pipeline import Pipeline, load

__all__ = ["Condition", "FeatureSpec", "Known", "Pipeline", "TokenSpec", "load"]
