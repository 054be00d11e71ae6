"""Diffusion policies: networks, noise, sampling, control, and the commands that use them."""
