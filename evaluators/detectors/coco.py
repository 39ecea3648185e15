"""The classes that COCO's detectors tell apart, as GenEval spells them."""

from __future__ import annotations

from gcpo_bench.geneval_prompts import CLASSES

__all__ = ["CLASSES"]
