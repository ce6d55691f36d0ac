"""A report that somebody else can check: write it, verify it, compare two."""
