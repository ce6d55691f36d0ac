"""How fast the card trains over a grid of shapes, beside what the card can do."""
