"""torch answers torch.cuda.* for an AMD card."""


def patch(torch):
    torch.version.hip, torch.version.cuda = "7.1", None
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 0
