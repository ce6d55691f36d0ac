"""More than one GPU: the same proof for each rank under torchrun, and how the speed grows."""
