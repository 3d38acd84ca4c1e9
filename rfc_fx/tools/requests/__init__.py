"""Many requests: what a request may be, the worker that draws it, files of prompts, and what is there already."""
