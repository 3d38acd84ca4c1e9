"""graph -> sites: the residual branches that can be estimated."""
