"""Measurements that a person starts; the tests only run them for a few steps and look at what they put out."""
