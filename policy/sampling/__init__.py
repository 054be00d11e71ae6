"""Samplers: from a denoiser to chunks of actions, with an explicit carry and no hidden state."""
