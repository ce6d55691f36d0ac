"""A real GPU that torch calls by another card's name."""

NAME = "NVIDIA GeForce RTX 5090"


def patch(torch):
    real = torch.cuda.get_device_properties

    class Renamed:
        def __init__(self, found):
            self._found, self.name = found, NAME

        def __getattr__(self, name):
            return getattr(self._found, name)

    torch.cuda.get_device_properties = lambda *a, **k: Renamed(real(*a, **k))
    torch.cuda.get_device_name = lambda *a, **k: NAME
