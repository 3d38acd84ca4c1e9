"""sites -> programs: outline, guard, specialize, lower."""
