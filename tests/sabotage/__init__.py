"""Ways to be fooled, each beside its healthy twin. `python -m tests.sabotage` runs them all and prints a table."""
