"""Learners: one file a kind; they take a problem, a round at a time, and give a policy."""
