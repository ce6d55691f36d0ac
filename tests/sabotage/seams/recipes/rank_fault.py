"""One rank of several does something wrong at one of its steps: RANK_FAULT is `kind:rank:step`."""

import os
import signal
import time


def patch(torch):
    kind, rank, step = os.environ["RANK_FAULT"].split(":")
    if os.environ.get("RANK") != rank:
        return
    clip, calls = torch.nn.utils.clip_grad_norm_, []

    def faulty(parameters, *args, **more):
        parameters = list(parameters)
        calls.append(1)
        if len(calls) == int(step):
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "hang":
                time.sleep(600)
            if kind == "drift":
                with torch.no_grad():
                    parameters[0].grad.mul_(1.5)
        return clip(parameters, *args, **more)

    torch.nn.utils.clip_grad_norm_ = faulty
