"""Training and publishing the embedded models."""
