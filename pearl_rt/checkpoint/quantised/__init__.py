"""Weights stored as integers in groups, or as 8-bit floats: read as the values that they stand for."""
