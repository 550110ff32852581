"""What others trained, read from their files: a format is a module here, found by its name."""
