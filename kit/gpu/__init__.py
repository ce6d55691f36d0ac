"""Is this GPU natively usable by this PyTorch, and if not, what to install."""
