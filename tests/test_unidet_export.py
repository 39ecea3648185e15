"""The program that leaves UniDet's detections in a file, beside a program of the published one's shape."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gcpo_bench.evaluators import stored_detections
from gcpo_bench.evaluators.compbench import box_depth
from gcpo_bench.evaluators.detectors import unidet_export

MODEL_BANK = """
import torch

class Boxes:
    def __init__(self, tensor):
        self.tensor = tensor

class Instances:
    def __init__(self, **fields):
        self.fields = fields

    def get_fields(self):
        return self.fields

class Model(torch.nn.Module):
    def forward(self, batch):
        # one box an image, whose confidence is the image's brightness, and one that is always there
        return [
            {
                "instances": Instances(
                    pred_boxes=Boxes(torch.tensor([[10.0, 20.0, 110.0, 60.0], [0.0, 0.0, 0.4, 5.0]])),
                    pred_classes=torch.tensor([1, 0]),
                    scores=torch.stack([each["image"].mean() / 255, torch.tensor(0.125)]),
                )
            }
            for each in batch
        ]

def load_expert_model(task, ckpt):
    assert (task, ckpt) == ("obj_detection", "R50")
    return Model(), lambda picture: picture.resize((479, 479))
"""
GENERATE_DATASET = """
import glob
import numpy as np
import torch
from PIL import Image

class Dataset(torch.utils.data.Dataset):
    def __init__(self, path, transform):
        self.files = sorted(glob.glob(path + "/samples/*"))
        self.transform = transform

    def __len__(self):
        return len(self.files)

    def __getitem__(self, row):
        pixels = np.asarray(self.transform(Image.open(self.files[row]).convert("RGB")), dtype=np.float32)
        return {"image": torch.from_numpy(pixels.transpose(2, 0, 1).copy()), "image_path": self.files[row]}

def collate_fn(batch):
    return batch
"""
SCRIPT = Path(unidet_export.__file__)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder as UniDet_eval is, and images of two prompts beside it."""
    for name, text in (("model_bank.py", MODEL_BANK), ("obj_detection/generate_dataset.py", GENERATE_DATASET)):
        path = tmp_path / "UniDet_eval" / "experts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "UniDet_eval" / "dataset").mkdir()
    torch.save({"labels": ["cat", "table, desk"]}, tmp_path / "UniDet_eval" / "dataset" / "detection_features.pt")
    for folder in ("outputs/samples", "depth"):
        (tmp_path / folder).mkdir(parents=True)
    ramp_YX = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    for number, level in enumerate((51, 102, 204, 255)):
        name = f"a cat near a table_{number:06d}.png"
        Image.new("RGB", (64, 64), (level,) * 3).save(tmp_path / "outputs" / "samples" / name)
        Image.fromarray(ramp_YX).save(tmp_path / "depth" / name)
    return tmp_path / "UniDet_eval"


def run(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": ""}  # nothing of this package
    command = [sys.executable, str(SCRIPT), "../outputs", "found.jsonl", "--images-per-prompt", "2", *arguments]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


def test_what_unidet_finds_is_what_the_benchmarks_read(place: Path) -> None:
    done = run(place, "--checkpoint", "R50", "--depth", "../depth")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "4 images: found.jsonl\n"
    stored = stored_detections.read(place / "found.jsonl")
    assert stored.notes == ()
    assert list(stored.rows) == [("00000", 0), ("00000", 1), ("00001", 0), ("00001", 1)]
    for (_, row), share in zip(stored.rows.items(), (0.2, 0.4, 0.8, 1.0), strict=True):
        assert row["labels"] == ["table, desk", "cat"]
        assert row["confidences"] == pytest.approx([share, 0.125])
        assert row["boxes"] == [[10, 20, 110, 60], [0, 0, pytest.approx(0.4), 5]]
        (first, second) = row["depths"]
        with Image.open(place.parent / "depth" / "a cat near a table_000000.png") as picture:
            map_YX = np.asarray(picture.resize((479, 479), Image.Resampling.BILINEAR))
        assert first == box_depth((10, 20, 110, 60), map_YX) / 255
        assert second is None  # no pixel is in that box


def test_without_depth_there_is_none_and_a_failure_leaves_no_file(place: Path) -> None:
    assert run(place, "--checkpoint", "R50").returncode == 0
    assert all("depths" not in json.loads(line) for line in (place / "found.jsonl").read_text().splitlines())
    (place / "found.jsonl").unlink()
    (place.parent / "depth" / "a cat near a table_000002.png").unlink()
    assert run(place, "--checkpoint", "R50", "--depth", "../depth").returncode != 0
    assert not (place / "found.jsonl").exists()


def test_on_flat_depth_no_object_is_nearer(tmp_path: Path) -> None:
    boxes = [(0, 0, 3, 3), (5, 7, 48, 31), (2, 1, 61, 60), (10, 10, 17, 64)]
    for level in range(256):
        Image.new("L", (64, 64), level).save(tmp_path / "map.png")
        # level / 255 cannot be held exactly, so its sum over the pixels of a box depends on how many they are
        assert unidet_export.depths(str(tmp_path / "map.png"), (64, 64), boxes) == [level / 255] * len(boxes)
