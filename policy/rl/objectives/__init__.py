"""What is optimised on a rollout, one file each."""
