"""The control loop: one clock, a plan indexed by control ticks, and what the timing was."""
