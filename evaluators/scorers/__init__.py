"""Scorers: one number an image (and prompt), on the scale of the published model. One scorer a file."""
