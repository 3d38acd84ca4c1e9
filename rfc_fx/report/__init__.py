"""What was found and decided, as text and drawings."""
