"""Environments of our own, small enough to read: ``import wm_engine`` registers them with gymnasium.

They import neither torch nor the rest of this package, so that a worker that simulates them starts in half a second.
"""
