"""model -> graph."""
