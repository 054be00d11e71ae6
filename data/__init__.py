"""Demonstrations: the store, windows over it, normalisation, recording."""
