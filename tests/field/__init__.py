"""Inputs of the kind that real checkpoints, cameras, files and users bring, and what is right."""
