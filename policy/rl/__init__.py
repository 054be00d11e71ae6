"""Fine-tuning with reward: rollouts, advantages, objectives, one update loop."""
