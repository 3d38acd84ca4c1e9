"""The numbers: training of the shipped model, latency, quality. Never installed."""
