"""Triton kernels, installed as ``wm_engine.kernels``."""
