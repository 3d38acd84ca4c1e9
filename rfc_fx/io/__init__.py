"""Files: presets, predictors, atomic writes."""
