"""Long runs: a thousand random generations on one model with failures injected, and what of it stays."""
