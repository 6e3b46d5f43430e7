"""Tokenizers: frames to compact latents and back, pairs of latents to latent actions."""
