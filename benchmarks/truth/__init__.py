"""Which sampler and which cache come nearest to what a model would draw with unlimited time."""
