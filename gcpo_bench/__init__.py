"""GCPO against GRPO for autoregressive text-to-image models: train, evaluate, report."""

__version__ = "0.1.0"
