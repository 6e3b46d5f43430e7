"""Latent predictor: a block-causal diffusion transformer that imagines the next frame's latents."""
