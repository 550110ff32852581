"""Presets: complete configurations of the main job, one TOML file each."""
