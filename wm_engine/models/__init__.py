"""V and M: one file a kind, its loss beside it; found by name."""
