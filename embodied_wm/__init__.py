"""World-action models: robot episodes in, imagined futures and actions out."""
