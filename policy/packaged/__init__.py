"""Policies exported as packages: graphs that need neither the networks' nor the samplers' code."""
