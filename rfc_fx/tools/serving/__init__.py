"""An accelerated pipeline behind HTTP: the front that checks, counts and retries, and the deployments of Ray Serve that run it."""
