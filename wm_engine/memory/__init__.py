"""M, the memory: an MDN-RNN that predicts the next latent, the reward and the end of the episode."""
