"""What acts on a world model's features: controllers as flat parameters."""
