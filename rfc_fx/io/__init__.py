"""Files: methods, predictors, atomic writes."""
