"""Wings of the house: more that the kit can do, which the core reaches by name and late."""
