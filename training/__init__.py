"""Reinforcement learning of autoregressive image policies: the method and its loop."""
