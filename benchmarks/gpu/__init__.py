"""The benchmark for one CUDA device."""
