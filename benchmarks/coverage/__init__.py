"""Which diffusers classes transform, compile and agree."""
