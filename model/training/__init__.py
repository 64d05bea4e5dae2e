"""Training steps: losses, mining, the trainer and its checkpoints."""
