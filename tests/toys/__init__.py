"""A toy task, a toy world model and a toy learner: one file each, and no file outside knows of them."""
