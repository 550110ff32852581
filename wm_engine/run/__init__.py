"""The loop, its folder, its configuration, its state, and what it publishes."""
