"""The diagnosis of a machine from pasted text."""
