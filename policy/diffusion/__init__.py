"""The maths of diffusion in one noise coordinate, `x = x0 + sigma * eps`: tensors only."""
