"""Benchmarks: images and prompts in, explained scores out."""
