"""Robots: simulated ones, and one file per real one."""
