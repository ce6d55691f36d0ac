"""torch is a build without CUDA, whatever build is installed."""


def patch(torch):
    torch.version.cuda = None
    torch.__version__ = torch.__version__.split("+")[0] + "+cpu"
    torch.cuda.is_available = lambda: False
    torch.cuda.device_count = lambda: 0
    torch.cuda.get_arch_list = list
