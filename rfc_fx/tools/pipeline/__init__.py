"""Whole pipelines of diffusers on the command line: what they are called with, what they return, how long they take."""
