"""UniDet's own side of `--option detections=FILE`: it runs where UniDet does and needs nothing of this package.

    cd T2I-CompBench/UniDet_eval
    python unidet_export.py ../outputs rs200.jsonl --checkpoint RS200                       # 2D, complex
    python unidet_export.py ../outputs r50.jsonl --checkpoint R50                           # numeracy
    python unidet_export.py ../outputs r50-3d.jsonl --checkpoint R50 --depth DEPTH_FOLDER   # 3D

The first folder holds `samples/<prompt>_<6 digits>.png` of one category, as the published programs expect it; images
go through their loader, model and labels, in half precision on CUDA as there. DEPTH_FOLDER holds the depth maps that
the 3D program left, 8-bit pictures named as the images are. Each line of the file is an image; `stored_detections`
reads it.
Written for Python 3.8 and newer.

Source: Karine-Huang/T2I-CompBench `UniDet_eval/2D_spatial_eval.py`, read for the names of its parts.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import sys
from typing import Any, Dict, List, Optional, Sequence  # noqa: UP035  # Python 3.8

LABELS = "dataset/detection_features.pt"
BATCH = 64


def address(path: str, images_per_prompt: int) -> Dict[str, Any]:  # noqa: UP006
    """Prompt and number of an image: files are numbered over the category, a prompt's images one after the other."""
    number = int(os.path.splitext(os.path.basename(path))[0].rpartition("_")[2])
    prompt, index = divmod(number, images_per_prompt)
    return {"prompt_id": f"{prompt:05d}", "image_index": index}


def detections(instances: Any, labels: Sequence[str]) -> Dict[str, List[Any]]:  # noqa: UP006
    """In the order of the detector, which is that of confidence; boxes in the frame it works in."""
    fields = instances.get_fields()
    return {
        "labels": [labels[row] for row in fields["pred_classes"].tolist()],
        "confidences": [float(score) for score in fields["scores"].tolist()],
        "boxes": [[float(side) for side in box] for box in fields["pred_boxes"].tensor.tolist()],
    }


def depths(path: str, size: Sequence[int], boxes: Sequence[Sequence[float]]) -> List[Optional[float]]:  # noqa: UP006, UP045
    """Means over the boxes, with rows and columns exchanged, as published; None where a box holds no pixel.

    `size` is height and width of the detector's frame.
    """
    import numpy
    from PIL import Image

    picture = Image.open(path).convert("L").resize((size[1], size[0]), getattr(Image, "Resampling", Image).BILINEAR)
    map_YX = numpy.asarray(picture)
    insides = (map_YX[int(left) : int(right), int(top) : int(bottom)] for left, top, right, bottom in boxes)
    # whole levels add up exactly: where depth is flat, rounding must not say who is nearer
    return [float(inside.mean()) / 255 if inside.size else None for inside in insides]


def export(outputs: str, file: str, checkpoint: str, images_per_prompt: int, depth: str) -> int:
    """Writes a line for each image; how many."""
    import torch

    reading = importlib.import_module("experts.obj_detection.generate_dataset")
    labels = torch.load(LABELS)["labels"]
    bank = importlib.import_module("experts.model_bank")
    model, transform = bank.load_expert_model(task="obj_detection", ckpt=checkpoint)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).eval()
    images = reading.Dataset(outputs, transform)
    loader = torch.utils.data.DataLoader(images, batch_size=BATCH, collate_fn=reading.collate_fn)
    count = 0
    part = file + ".part"
    with open(part, "w", encoding="utf-8") as out, torch.no_grad():
        for batch in loader:
            with torch.autocast(device, enabled=device == "cuda"):
                found = model(batch)
            for image, each in zip(batch, found):  # noqa: B905  # Python 3.8
                row = {**address(image["image_path"], images_per_prompt), **detections(each["instances"], labels)}
                if depth:
                    name = os.path.join(depth, os.path.basename(image["image_path"]))
                    row["depths"] = depths(name, image["image"].shape[-2:], row["boxes"])
                if not all(math.isfinite(score) for score in row["confidences"]):
                    sys.exit(f"{image['image_path']}: a confidence is no number")
                out.write(json.dumps(row) + "\n")
                count += 1
    os.replace(part, file)  # a file that is there is whole
    return count


def main() -> None:
    reader = argparse.ArgumentParser(description="Leave UniDet's detections of one category in a file.")
    reader.add_argument("outputs", help="folder that holds samples/")
    reader.add_argument("file", help="JSON lines, one an image")
    reader.add_argument("--checkpoint", required=True, choices=("RS200", "R50"))
    reader.add_argument("--images-per-prompt", type=int, default=10)
    reader.add_argument("--depth", default="", metavar="FOLDER", help="depth maps named as the images, for 3D")
    given = reader.parse_args()
    sys.path.insert(0, os.getcwd())  # where `experts` lies
    count = export(given.outputs, given.file, given.checkpoint, given.images_per_prompt, given.depth)
    print(f"{count} images: {given.file}")


if __name__ == "__main__":
    main()
