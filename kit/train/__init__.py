"""Train a real model for a few steps and gather witnesses that the GPU did the work."""
