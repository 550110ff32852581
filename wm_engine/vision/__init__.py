"""V, the vision: a convolutional VAE that compresses frames to latents; its training; the encoded rollouts."""

from wm_engine.vision.latents import LatentEpisode, Latents, encode_store
from wm_engine.vision.model import VAE
from wm_engine.vision.training import VisionSettings, train_vision

__all__ = ["VAE", "LatentEpisode", "Latents", "VisionSettings", "encode_store", "train_vision"]
