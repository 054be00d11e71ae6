"""Guidance: denoisers from denoisers."""
