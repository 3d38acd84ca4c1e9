"""Training of the models that the project ships or measures."""
