"""Error against computation: the laboratory."""
