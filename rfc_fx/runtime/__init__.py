"""programs -> steps: state, decisions and the face of diffusers. No pass is imported here."""
