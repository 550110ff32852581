"""Agents driving real environments, and their scores."""
