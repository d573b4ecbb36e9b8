"""Inputs, uses and moments met in the field, each with the right value."""
