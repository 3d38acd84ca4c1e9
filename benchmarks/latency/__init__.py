"""Time per step and per generation, interleaved."""
