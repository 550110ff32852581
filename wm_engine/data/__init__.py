"""The store of recorded episodes, and what is read from it to learn."""
