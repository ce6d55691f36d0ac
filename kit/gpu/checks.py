"""The questions that the judge asks of a machine, in the order of the report."""

from __future__ import annotations

from collections.abc import Callable

from kit.gpu import ask_environment as environment
from kit.gpu import ask_native as native
from kit.gpu.arch import dotted
from kit.gpu.question import Answer, Question
from kit.records import Check


def ask(question: Question) -> tuple[Check, ...]:
    """Every question that applies, with its answer."""
    checks = []
    for name, expected, answer_to in QUESTIONS:
        answer = answer_to(question)
        if answer is not None:
            text = expected(question) if callable(expected) else expected
            checks.append(Check(name, answer.outcome, answer.found, text, answer.todo, answer.values, answer.required))
    return tuple(checks)


QUESTIONS: tuple[tuple[str, str | Callable[[Question], str], Callable[[Question], Answer | None]], ...] = (
    ("environment.driver", "an NVIDIA driver that answers and lists the GPU", environment.driver),
    ("environment.driver_state", "no error of the GPU in the kernel log", environment.driver_state),
    ("environment.torch_build", "a torch build with CUDA", environment.torch_build),
    ("environment.driver_for_build", environment.expected_driver, environment.driver_for_build),
    ("environment.cuda_starts", "torch.cuda.is_available() is true", environment.cuda_starts),
    ("environment.two_witnesses", "the driver and torch name the same card", environment.two_witnesses),
    (
        "environment.expected_gpu",
        lambda q: f"the GPU in use is {q.expectation.gpu_name!r}",
        environment.expected_gpu,
    ),
    (
        "environment.min_cuda",
        lambda q: f"torch built with CUDA {dotted(q.expectation.min_cuda)} or newer",
        environment.min_cuda,
    ),
    ("environment.exclusive_gpu", "a GPU for this run alone", environment.exclusive),
    ("environment.other_gpus", "a build that serves every GPU of the machine", environment.other_gpus),
    ("native.arch_in_build", "native code for the GPU in the torch build", native.arch),
    ("native.kernel_ran", "a real kernel runs on the GPU", native.kernel),
    ("native.numbers", "the product agrees with float64", native.numbers),
    ("native.without_ptx_jit", "the kernel runs with PTX JIT switched off", native.without_jit),
    ("native.rule_agrees_with_run", "table and run say the same", native.agreement),
)
