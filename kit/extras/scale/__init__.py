"""Several GPUs: each rank proved, the speed of all of them measured."""
