"""The training step as one CUDA graph."""
