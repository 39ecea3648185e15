"""Folders in transformers' layout into networks: whole, in single precision, from this machine only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from gcpo_bench.errors import CorruptDataError
from gcpo_bench.weights import model_digest


def load_model(kind: Any, folder: Path, *, unused: str = r"(?!)") -> tuple[Any, str]:
    """The network of a transformers class in a folder, and the checksum of its weights and config.json.

    Args:
        unused: pattern of weights that the folder may lack, because nothing is computed with them.
    Raises:
        PrerequisiteError: the folder holds no weights. CorruptDataError: they are not this network's, or not all.
    """
    digest = model_digest(folder)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # what is missing is told below
    try:
        model, loading = kind.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # of damaged files transformers, safetensors and pickle raise what they like
        reason = " ".join(str(error).split())[:300]
        raise CorruptDataError(
            f"{folder} holds no {kind.__name__} that can be used: {reason}", hint="fetch the folder again"
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    if absent := sorted(name for name in loading["missing_keys"] if not re.search(unused, name)):
        raise CorruptDataError(
            f"{folder} lacks {len(absent)} weights of {kind.__name__}, the first is {absent[0]!r}",
            hint="fetch the folder again",
        )
    model.requires_grad_(False)
    return model.train(mode=False), digest
