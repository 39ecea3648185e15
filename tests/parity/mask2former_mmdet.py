"""GenEval's detector here against mmdet's own: the same random Swin-S weights, the same image files.

Needs, in an environment beside this package: mmdet==3.3.0 mmengine==0.10.7 mmcv-lite==2.1.0. Not collected by pytest:

    python -m tests.parity.mask2former_mmdet --out parity.json

mmcv-lite has no compiled operators; deformable attention then runs mmdet's own path in plain torch, the same formula.
Two differences of mmdet 3.x from 2.x, which GenEval uses, are taken out: it scales images in floating point unless told
otherwise, and it pads after normalising; so the sizes are such that a scaled image needs no padding.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from gcpo_bench.evaluators.detectors.mask2former import Instance, Mask2Former
from gcpo_bench.evaluators.detectors.mask2former_weights import from_state
from gcpo_bench.evaluators.detectors.mmdet import CONFIG, has_operators
from gcpo_bench.geneval_prompts import CLASSES

SIZES = ((512, 512), (1024, 1024), (400, 544))
"""Enlarged, reduced, and not square; height, width."""


def picture(height: int, width: int, seed: int) -> Image.Image:
    """Coloured discs and boxes with some noise."""
    rng = np.random.default_rng(seed)
    page = Image.fromarray(rng.integers(200, 256, (height, width, 3), dtype=np.uint8))
    draw = ImageDraw.Draw(page)
    for shape in range(8):
        left, top = (int(rng.integers(0, 3 * side // 4)) for side in (width, height))
        box = (left, top, left + int(rng.integers(20, width // 3)), top + int(rng.integers(20, height // 3)))
        color = tuple(int(value) for value in rng.integers(0, 256, 3))
        (draw.ellipse if shape % 2 else draw.rectangle)(box, fill=color)
    return page


def theirs() -> Any:
    """mmdet's detector with random weights; the classes' are larger than at its start, so that scores are far apart."""
    has_operators()
    import mmdet
    from mmdet.apis import init_detector
    from mmengine import Config

    config = Config.fromfile(str(Path(mmdet.__file__).parent / ".mim/configs" / CONFIG))
    config.model.backbone.init_cfg = None
    config.test_dataloader.dataset.pipeline[0].to_float32 = False  # as in 2.x: images are scaled in 8 bits
    torch.manual_seed(0)
    model = init_detector(config, None, device="cpu")
    with torch.no_grad():
        torch.nn.init.normal_(model.panoptic_head.cls_embed.weight, std=0.3)
    return model


def compare(found: list[Instance], instances: Any, seconds: tuple[float, float]) -> dict[str, Any]:
    """Differences over the 100 instances of one image, matched by class and confidence."""
    ours = sorted(found, key=lambda each: (each.label, -each.confidence, each.box))
    boxes, labels = instances.bboxes.tolist(), [CLASSES[i] for i in instances.labels.tolist()]
    rows = zip(labels, instances.scores.tolist(), boxes, instances.masks.numpy(), strict=True)
    others = sorted(rows, key=lambda row: (row[0], -row[1], tuple(row[2])))
    pairs = list(zip(ours, others, strict=True))
    overlap = [float((a.mask_YX == mask).mean()) for a, (_, _, _, mask) in pairs]
    return {
        "instances": len(pairs),
        "same class": sum(a.label == label for a, (label, *_) in pairs),
        "confidence, largest": max(a.confidence for a in ours),
        "confidence, difference": max(abs(a.confidence - score) for a, (_, score, *_) in pairs),
        "box, difference in pixels": max(
            abs(x - y) for a, (_, _, box, _) in pairs for x, y in zip(a.box, box, strict=True)
        ),
        "mask, smallest share of equal pixels": min(overlap),
        "seconds here": round(seconds[0], 1),
        "seconds mmdet": round(seconds[1], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path)
    out: Path | None = parser.parse_args().out
    model = theirs()
    from mmdet.apis import inference_detector  # only now can it be imported

    detector = Mask2Former(from_state(model.state_dict()))
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed, (height, width) in enumerate(SIZES):
            path = Path(folder) / f"{seed}.png"
            picture(height, width, seed).save(path)
            started = time.perf_counter()
            found = detector(np.asarray(Image.open(path)))
            middle = time.perf_counter()
            instances = inference_detector(model, str(path)).pred_instances
            seconds = (middle - started, time.perf_counter() - middle)
            results[f"{height}x{width}"] = compare(found, instances, seconds)
            print(f"{height}x{width}", json.dumps(results[f"{height}x{width}"], indent=1), flush=True)
    if out:
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
