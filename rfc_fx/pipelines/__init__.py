"""Pipelines of diffusers: one line that caches their denoisers, and what is chosen for them."""
