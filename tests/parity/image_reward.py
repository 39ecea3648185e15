"""ImageReward here against the package image-reward: random weights, the same pictures and prompts.

Needs, in an environment beside this package: image-reward==1.5 timm==0.6.13 fairscale torchvision==0.28.0 (`pip install
--no-deps` keeps them from pulling another torch). Not collected by pytest:

    python -m tests.parity.image_reward --out parity.json

The package's own model and preprocessing run, with its ViT-L/16 at full size and a BERT of two layers. Put in place is
only what it imports: functions that transformers has moved or dropped, the tokenizer's download, torchvision's
operators.
"""

from __future__ import annotations

from . import operators  # noqa: F401  # before torchvision is imported

# isort: split

import argparse
import contextlib
import importlib
import importlib.util
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers.modeling_utils as moved
from PIL import Image
from transformers import BertTokenizer, pytorch_utils

from gcpo_bench.evaluators.scorers.blip_weights import BlipSize
from gcpo_bench.evaluators.scorers.image_reward import load_image_reward

from ..scorer_factory import bert_tokenizer_folder
from .hps_hpsv2 import ODD, SIZES, picture

SMALL = BlipSize(text_layers=2)
CONFIG = {
    "architectures": ["BertModel"],
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "hidden_size": SMALL.text_width,
    "initializer_range": 0.02,
    "intermediate_size": SMALL.text_mlp,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": SMALL.positions,
    "model_type": "bert",
    "num_attention_heads": SMALL.text_heads,
    "num_hidden_layers": SMALL.text_layers,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": SMALL.words,
    "encoder_width": SMALL.vision_width,
    "add_cross_attention": True,
}


def prepare(words: Path) -> Any:
    """The package's class ImageReward, without its __init__, which imports scorers that are not looked at here."""
    for name in ("apply_chunking_to_forward", "prune_linear_layer"):
        setattr(moved, name, getattr(pytorch_utils, name, None))
    moved.find_pruneable_heads_and_indices = None  # type: ignore[attr-defined]  # heads are not pruned
    spec = importlib.util.find_spec("ImageReward")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    for name in ("ImageReward", "ImageReward.models"):
        package = types.ModuleType(name)
        package.__path__ = [str(Path(spec.submodule_search_locations[0], *name.split(".")[1:]))]
        sys.modules[name] = package
    with contextlib.suppress(ImportError):
        importlib.import_module("transformers.file_utils")
    if "transformers.file_utils" not in sys.modules:
        utils = types.ModuleType("transformers.file_utils")
        utils.ModelOutput = importlib.import_module("transformers.utils").ModelOutput  # type: ignore[attr-defined]
        sys.modules["transformers.file_utils"] = utils
    blip: Any = importlib.import_module("ImageReward.models.BLIP.blip_pretrain")
    bert: Any = importlib.import_module("ImageReward.models.BLIP.med").BertPreTrainedModel
    bert.init_weights = lambda self: None  # weights are random as torch makes them
    bert.invert_attention_mask = lambda self, mask: (1 - mask[:, None, None].float()) * torch.finfo(torch.float32).min
    bert.get_head_mask = lambda self, mask, layers, *_: [None] * layers
    blip.init_tokenizer = lambda: BertTokenizer.from_pretrained(words)
    return importlib.import_module("ImageReward.ImageReward").ImageReward


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = bert_tokenizer_folder(folder / "words")
        (folder / "med_config.json").write_text(json.dumps(CONFIG))
        torch.manual_seed(0)
        theirs = prepare(words)(str(folder / "med_config.json"))
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape))
            for parameter in theirs.mlp.parameters():  # scores as far apart as real ones
                parameter.normal_(0, 2 * parameter.shape[-1] ** -0.5)
        theirs.train(mode=False)
        torch.save(theirs.state_dict(), folder / "ImageReward.pt")
        ours = load_image_reward(folder / "ImageReward.pt", words, size=SMALL)
        shown = [picture(*size, seed) for seed, size in enumerate(SIZES)]
        with torch.no_grad():
            expected = [theirs.score(text, Image.fromarray(image)) for image, text in zip(shown, ODD, strict=True)]
        found = [score for score in ours.score(shown, ODD) if isinstance(score, float)]
    result = {
        "scores": len(found),
        "unused tensors": sorted(name for name in theirs.state_dict() if "_proj." in name and "blip." in name[:5]),
        "spread": float(np.ptp(expected)),
        "difference": max(abs(a - b) for a, b in zip(expected, found, strict=True)),
    }
    print(json.dumps(result, indent=1))
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
