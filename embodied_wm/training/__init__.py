"""Training: one flat loop, the stages that make a world model, and their resumable state."""
