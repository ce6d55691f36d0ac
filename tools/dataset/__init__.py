"""Generates the dataset dev-reasoning-v2."""
