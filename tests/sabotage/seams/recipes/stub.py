"""A torch that asks NVML whether there is a GPU, and finds a stub where CUDA's driver should be."""


def patch(torch):
    def start(*_, **__):
        raise RuntimeError("Unexpected error from cudaGetDeviceCount(). Error 34: CUDA driver is a stub library")

    torch.version.cuda = "13.0"
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 1
    for name in ("init", "get_arch_list", "get_device_properties"):
        setattr(torch.cuda, name, start)
