"""M, the memory: an MDN-RNN that predicts the next latent, the reward and the end of the episode."""

from wm_engine.memory.fidelity import memory_fidelity
from wm_engine.memory.model import MDNRNN
from wm_engine.memory.training import MemorySettings, train_memory

__all__ = ["MDNRNN", "MemorySettings", "memory_fidelity", "train_memory"]
