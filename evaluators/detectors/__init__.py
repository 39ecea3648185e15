"""Detectors: pixels in, labelled boxes out."""
