"""Feature caches of other libraries as variants of the latency benchmark."""
