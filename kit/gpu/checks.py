"""The questions that the judge asks of a machine, one function each; `kit.gpu.verdict` puts them together.

A question that does not apply answers None. Where a run showed what a table denies, the
run counts, and the table's answer is no longer required.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from kit.gpu.arch import dotted
from kit.gpu.build import Holding, variant_of
from kit.gpu.case import Case, Diagnosis
from kit.gpu.compat import driver_floor, driver_runs, text_of
from kit.gpu.facts import Gpu, MachineFacts
from kit.gpu.witnesses import disagreements, is_slice, matches, partner
from kit.records import Check, Outcome


@dataclasses.dataclass(frozen=True)
class Expectation:
    """gpu_name: words that the GPU's name must have. min_cuda: of the torch build. device: 'cuda', 'cpu' or 'auto',
    which is 'cuda' wherever the machine shows an NVIDIA device of any kind."""

    gpu_name: str | None = None
    min_cuda: tuple[int, int] | None = None
    device: str = "cuda"


@dataclasses.dataclass(frozen=True)
class Question:
    """What every check looks at."""

    case: Case
    expectation: Expectation
    found: Diagnosis
    held: Holding

    @property
    def facts(self) -> MachineFacts:
        return self.case.facts

    @property
    def ran(self) -> bool:
        proof = self.facts.proof
        return bool(proof and proof.ran and proof.device != "cpu")

    @property
    def gpu(self) -> Gpu | None:
        """The device that torch would use: its number 0."""
        return self.case.gpus[0] if self.case.gpus else None


# --- environment ----------------------------------------------------------------------


def _driver(question: Question) -> Check:
    driver = question.facts.driver
    expected = "an NVIDIA driver that answers and lists the GPU"
    if driver is None or not (driver.version or driver.gpus or driver.nvml_error):
        missing = question.found.word == "no_driver_or_no_gpu"
        outcome = Outcome.FAIL if missing else Outcome.INCONCLUSIVE
        found = question.found.because[0] if missing else "nothing is known about the driver"
        return Check(
            "environment.driver",
            outcome,
            found,
            expected,
            "Run nvidia-smi and see what it says.",
            required=not question.ran,
        )
    values = {"version": driver.version, "gpus": [gpu.name for gpu in driver.gpus], "libcuda": driver.libcuda}
    if driver.nvml_error:
        found = f"NVML cannot start: {driver.nvml_error}" + (
            "; CUDA runs all the same" if question.ran else ""
        )
        outcome = Outcome.INCONCLUSIVE if question.ran else Outcome.FAIL
        return Check(
            "environment.driver",
            outcome,
            found,
            expected,
            "Restart after a driver change; see nvidia-smi.",
            values,
            required=not question.ran,
        )
    gpus = ", ".join(gpu.name or "unnamed" for gpu in driver.gpus) or "no GPU"
    found = f"driver {driver.version or 'of unknown version'} lists {gpus}"
    if not driver.gpus and question.facts.source != "text":
        return Check(
            "environment.driver",
            Outcome.FAIL,
            found,
            expected,
            "See why the driver lists no device: nvidia-smi -L.",
            values,
        )
    return Check("environment.driver", Outcome.PASS, found, expected, values=values)


def _driver_state(question: Question) -> Check | None:
    """Xid errors in the kernel log; a log that cannot be read is no finding."""
    xids = question.facts.xids
    if xids is None:
        return None
    return Check(
        "environment.driver_state",
        Outcome.FAIL if xids else Outcome.PASS,
        f"the kernel log has Xid {', '.join(map(str, xids))}" if xids else "no Xid error in the kernel log",
        "no error of the GPU in the kernel log",
        "Look the number up in NVIDIA's Xid table, restart, and test the hardware." if xids else "",
        {"xids": list(xids)},
    )


def _torch_build(question: Question) -> Check:
    torch, expected = question.facts.torch, "a torch build with CUDA"
    if torch is None:
        known = question.facts.source != "text"
        outcome, found = (
            (Outcome.FAIL, "torch is not installed")
            if known
            else (Outcome.INCONCLUSIVE, "the torch build is not known")
        )
        return Check("environment.torch_build", outcome, found, expected, "Install a CUDA build of torch.")
    values = {"version": torch.version, "cuda": torch.cuda, "hip": torch.hip, "direct_url": torch.direct_url}
    if torch.hip:
        found = f"{torch.version} is built for AMD ROCm {torch.hip}, not for NVIDIA"
        return Check(
            "environment.torch_build", Outcome.FAIL, found, expected, "Install a CUDA build of torch.", values
        )
    if question.found.word == "cpu_only_build" or torch.is_cpu_build:
        found = f"torch build has no CUDA: {torch.version or 'CPU only'}"
        if question.facts.driver and question.facts.driver.gpus:
            found += f"; driver sees {question.facts.driver.gpus[0].name}"
        return Check(
            "environment.torch_build",
            Outcome.FAIL,
            found,
            expected,
            "Install a CUDA build of torch (see the remedy).",
            values,
        )
    if (
        torch.metadata_version
        and torch.version
        and torch.metadata_version.split("+")[0] != torch.version.split("+")[0]
    ):
        found = f"torch says {torch.version}, its package metadata {torch.metadata_version}: two installations are mixed"
        return Check(
            "environment.torch_build",
            Outcome.FAIL,
            found,
            expected,
            "Install torch again in a fresh environment.",
            values,
        )
    if torch.cuda is None:
        return Check(
            "environment.torch_build",
            Outcome.INCONCLUSIVE,
            f"torch {torch.version or 'of unknown version'}; its CUDA is not known",
            expected,
            values=values,
        )
    return Check(
        "environment.torch_build",
        Outcome.PASS,
        f"torch {torch.version} for CUDA {dotted(torch.cuda)}",
        expected,
        values=values,
    )


def _driver_for_build(question: Question) -> Check | None:
    variant, case = variant_of(question.facts.torch), question.case
    if not variant or variant == "cpu":
        return None
    floor = driver_floor(variant, case.system)
    runs = driver_runs(variant, case.driver_version, case.system, driver_cuda=case.driver_cuda)
    expected = f"driver {text_of(floor)} or newer for {variant}" if floor else f"a driver for {variant}"
    shown = case.driver_version or (f"CUDA {dotted(case.driver_cuda)}" if case.driver_cuda else "unknown")
    values = {
        "driver": case.driver_version,
        "driver_cuda": case.driver_cuda,
        "floor": floor,
        "variant": variant,
    }
    if runs is False and (question.ran or case.is_available):
        found = f"driver {shown} is below the table's minimum, yet CUDA runs: forward compatibility"
        return Check("environment.driver_for_build", Outcome.PASS, found, expected, values=values)
    if runs is False or question.found.word == "driver_too_old_for_runtime":
        todo = "Install a build for an older CUDA, or a newer driver (see the remedy)."
        return Check(
            "environment.driver_for_build",
            Outcome.FAIL,
            f"driver {shown} is too old for {variant}",
            expected,
            todo,
            values,
        )
    if runs is None:
        return Check(
            "environment.driver_for_build",
            Outcome.INCONCLUSIVE,
            "the driver's version is not known",
            expected,
            values=values,
            required=not question.ran,
        )
    return Check(
        "environment.driver_for_build",
        Outcome.PASS,
        f"driver {shown} runs {variant}",
        expected,
        values=values,
    )


def _cuda_starts(question: Question) -> Check:
    available = question.case.is_available
    expected = "torch.cuda.is_available() is true"
    mask = {name: value for name, value in question.facts.environment.items() if "VISIBLE" in name}
    if available or question.ran:
        found = "CUDA starts"
        if mask:
            found += " with " + ", ".join(f"{name}={value!r}" for name, value in mask.items())
        return Check("environment.cuda_starts", Outcome.PASS, found, expected, values={"environment": mask})
    if available is None and question.found.word == "ok":
        return Check(
            "environment.cuda_starts",
            Outcome.INCONCLUSIVE,
            "whether CUDA starts was not tried",
            expected,
            "python -m kit check",
        )
    found = "; ".join(question.found.because)
    if available is None and question.found.confidence == "low":
        return Check("environment.cuda_starts", Outcome.INCONCLUSIVE, found, expected, question.found.ask)
    return Check(
        "environment.cuda_starts",
        Outcome.FAIL,
        found,
        expected,
        question.found.ask or "See the remedy.",
        {"environment": mask},
    )


def _two_witnesses(question: Question) -> Check | None:
    facts, expected = question.facts, "the driver and torch name the same card"
    torch_gpus = facts.torch.gpus if facts.torch else ()
    if not torch_gpus:
        return None
    differ = disagreements(facts)
    names = [gpu.name for gpu in torch_gpus]
    values = {
        "torch": names,
        "driver": [gpu.name for gpu in facts.driver.gpus] if facts.driver else None,
        "nvidia_smi": list(facts.nvidia_smi_gpus),
        "nvidia_smi_exit_code": facts.nvidia_smi_exit_code,
    }
    if differ:
        todo = "Find out which program is patched, old or from another machine: nvidia-smi -L."
        return Check("environment.two_witnesses", Outcome.FAIL, "; ".join(differ), expected, todo, values)
    if facts.driver and facts.driver.gpus or facts.nvidia_smi_gpus:
        found = f"driver and torch agree: {', '.join(name or '?' for name in names)}"
        return Check("environment.two_witnesses", Outcome.PASS, found, expected, values=values)
    if facts.has_nvidia_device is False:
        found = f"torch names {names[0]}, and this machine has no NVIDIA device"
        return Check(
            "environment.two_witnesses",
            Outcome.FAIL,
            found,
            expected,
            "Find out what answers in CUDA's place.",
            values,
        )
    return Check(
        "environment.two_witnesses",
        Outcome.INCONCLUSIVE,
        "only torch names the GPU; the driver was not heard",
        expected,
        "Install nvidia-ml-py, or see nvidia-smi.",
        values,
        required=facts.source != "text",
    )


def _expected_gpu(question: Question) -> Check | None:
    wanted, gpu = question.expectation.gpu_name, question.gpu
    if not wanted:
        return None
    expected = f"the GPU in use is {wanted!r}"
    if gpu is None or not gpu.name:
        return Check(
            "environment.expected_gpu", Outcome.INCONCLUSIVE, "the name of the GPU is not known", expected
        )
    other = partner(gpu, question.facts.driver.gpus) if question.facts.driver else None
    values = {"expected": wanted, "name": gpu.name, "uuid": gpu.uuid, "mig": is_slice(gpu, other)}
    if is_slice(gpu, other) and "mig" not in wanted.lower():
        profile = next(
            (p for p in (gpu.mig_profile, other and other.mig_profile) if p and p != "enabled"), ""
        )
        found = f"the device is a MIG slice {profile} of {gpu.name}, not the full card".replace("  ", " ")
        return Check(
            "environment.expected_gpu",
            Outcome.FAIL,
            found,
            expected,
            "Use the full card, or expect the MIG slice by name.",
            values,
        )
    if matches(wanted, gpu.name):
        return Check(
            "environment.expected_gpu", Outcome.PASS, f"the GPU in use is {gpu.name}", expected, values=values
        )
    todo = "Run on the other machine or card, or expect this one."
    position = next(
        (other.index for other in question.case.gpus[1:] if matches(wanted, other.name or "")), None
    )
    if position is not None:
        todo = f"Show torch that card alone: CUDA_VISIBLE_DEVICES={position}"
    return Check(
        "environment.expected_gpu", Outcome.FAIL, f"the GPU in use is {gpu.name}", expected, todo, values
    )


def _min_cuda(question: Question) -> Check | None:
    wanted = question.expectation.min_cuda
    if wanted is None:
        return None
    cuda = question.facts.torch.cuda if question.facts.torch else None
    expected = f"torch built with CUDA {dotted(wanted)} or newer"
    if cuda is None:
        outcome = Outcome.FAIL if question.found.word == "cpu_only_build" else Outcome.INCONCLUSIVE
        return Check(
            "environment.min_cuda", outcome, "the build has no CUDA, or its version is not known", expected
        )
    outcome = Outcome.PASS if cuda >= wanted else Outcome.FAIL
    todo = (
        "" if cuda >= wanted else f"Install a build for CUDA {dotted(wanted)} or newer that this driver runs."
    )
    return Check(
        "environment.min_cuda",
        outcome,
        f"torch is built with CUDA {dotted(cuda)}",
        expected,
        todo,
        {"cuda": cuda},
    )


def _exclusive(question: Question) -> Check | None:
    """A shared GPU: what is computed is right, but times mean nothing. Not required here."""
    names = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE")
    mps = [name for name in names if question.facts.environment.get(name)]
    others = [
        gpu for gpu in (question.facts.driver.gpus if question.facts.driver else ()) if gpu.compute_processes
    ]
    if not mps and not others:
        return None
    why = (
        f"MPS is on ({', '.join(mps)})"
        if mps
        else f"{others[0].compute_processes} other process(es) compute on {others[0].name}"
    )
    return Check(
        "environment.exclusive_gpu",
        Outcome.INCONCLUSIVE,
        f"shared device: {why}",
        "a GPU for this run alone",
        "Measure again on an idle GPU.",
        required=False,
    )


def _other_gpus(question: Question) -> Check | None:
    """GPUs beside the one in use that this build cannot serve."""
    bad = [(gpu, held) for gpu, _, held in question.case.holdings[1:] if held.how in ("none", "ptx")]
    if not bad:
        return None
    found = "; ".join(f"{gpu.name}: {held.reason}" for gpu, held in bad)
    return Check(
        "environment.other_gpus",
        Outcome.INCONCLUSIVE,
        found,
        "a build that serves every GPU of the machine",
        "Hide those GPUs with CUDA_VISIBLE_DEVICES, or use a build that serves all.",
        required=False,
    )


# --- native ---------------------------------------------------------------------------


def _arch(question: Question) -> Check:
    held, expected = question.held, "native code for the GPU in the torch build"
    values = {"how": held.how, "code": held.code, "is_exact": held.is_exact, "source": held.source}
    note = "" if held.is_exact or held.how != "native" else f" (runs {held.code} code)"
    outcome = {"native": Outcome.PASS, "none": Outcome.FAIL, "ptx": Outcome.FAIL}.get(
        held.how, Outcome.INCONCLUSIVE
    )
    todo = "Install a build with code for this GPU (see the remedy)." if outcome is Outcome.FAIL else ""
    is_settled = (
        question.ran
        and question.facts.proof is not None
        and question.facts.proof.ran_without_ptx_jit is not False
    )
    if outcome is Outcome.FAIL and is_settled:
        found = f"by the table: {held.reason}; a run decides, and the kernel ran"
        return Check(
            "native.arch_in_build", Outcome.INCONCLUSIVE, found, expected, values=values, required=False
        )
    required = not (outcome is Outcome.INCONCLUSIVE and question.ran)
    return Check("native.arch_in_build", outcome, held.reason + note, expected, todo, values, required)


def _kernel(question: Question) -> Check:
    proof, expected = question.facts.proof, "a real kernel runs on the GPU"
    if proof is None:
        word = question.found.word
        found = (
            "no kernel was run"
            if word == "ok" or question.facts.source == "text"
            else f"no kernel could be run: {word}"
        )
        return Check(
            "native.kernel_ran",
            Outcome.INCONCLUSIVE,
            found,
            expected,
            "python -m kit check, on the machine itself",
        )
    values = {"device": proof.device, "size": proof.size, "dtype": proof.dtype, "seconds": proof.seconds}
    if proof.device == "cpu":
        return Check(
            "native.kernel_ran",
            Outcome.FAIL,
            "the kernel ran on the CPU",
            expected,
            "Ask for device cuda.",
            values,
        )
    if not proof.ran:
        found = f"the kernel failed: {(proof.error or 'no text')[:300]}"
        if question.found.cause == "force_ptx_jit":
            found = question.found.because[0]
        return Check("native.kernel_ran", Outcome.FAIL, found, expected, "See the remedy.", values)
    return Check(
        "native.kernel_ran",
        Outcome.PASS,
        f"a {proof.size} x {proof.size} {proof.dtype} product ran",
        expected,
        values=values,
    )


def _numbers(question: Question) -> Check | None:
    proof = question.facts.proof
    if proof is None or not proof.ran:
        return None
    error, limit = proof.max_relative_error, proof.limit
    if error is None or limit is None:
        return Check(
            "native.numbers",
            Outcome.INCONCLUSIVE,
            "the result was not compared",
            "the product agrees with float64",
        )
    outcome = Outcome.PASS if error <= limit else Outcome.FAIL
    return Check(
        "native.numbers",
        outcome,
        f"largest relative error {error:.2g}",
        f"at most {limit:.2g} against float64",
        "" if outcome is Outcome.PASS else "Do not trust this GPU or build; run again.",
        {"error": error, "limit": limit},
    )


def _without_jit(question: Question) -> Check | None:
    if not question.ran or question.facts.proof is None:
        return None
    native, expected = question.facts.proof.ran_without_ptx_jit, "the kernel runs with PTX JIT switched off"
    if native is None:
        # A build without any PTX has nothing to compile at run time.
        is_plain = (
            question.held.how == "native"
            and question.held.source == "list"
            and not any(
                entry.startswith("compute_")
                for entry in question.facts.torch.arch_list  # type: ignore[union-attr]
            )
        )
        found = "not tried; the build lists no PTX" if is_plain else "not tried"
        return Check(
            "native.without_ptx_jit", Outcome.PASS if is_plain else Outcome.INCONCLUSIVE, found, expected
        )
    if native:
        return Check("native.without_ptx_jit", Outcome.PASS, "it ran without PTX JIT: native code", expected)
    found = (
        "runs by PTX JIT, not native: "
        + (question.facts.proof.jit_error or "it fails with JIT switched off")[:300]
    )
    return Check(
        "native.without_ptx_jit",
        Outcome.FAIL,
        found,
        expected,
        "Install a build with native code (see the remedy).",
    )


def _agreement(question: Question) -> Check | None:
    """The table against the run. A disagreement is worth knowing, but the run decides."""
    proof = question.facts.proof
    if proof is None or proof.device == "cpu" or question.held.how in ("unknown", "possible"):
        return None
    says = question.held.how == "native"
    is_native = proof.ran and proof.ran_without_ptx_jit is not False
    expected = "table and run say the same"
    if says == is_native:
        return Check(
            "native.rule_agrees_with_run", Outcome.PASS, "table and run agree", expected, required=False
        )
    found = f"the table says {'yes' if says else 'no'} ({question.held.reason}), the run says {'yes' if is_native else 'no'}"
    todo = "Trust the run; tell the maintainers of the table which GPU, driver and build this is."
    return Check("native.rule_agrees_with_run", Outcome.INCONCLUSIVE, found, expected, todo, required=False)


QUESTIONS: tuple[Callable[[Question], Check | None], ...] = (
    _driver,
    _driver_state,
    _torch_build,
    _driver_for_build,
    _cuda_starts,
    _two_witnesses,
    _expected_gpu,
    _min_cuda,
    _exclusive,
    _other_gpus,
    _arch,
    _kernel,
    _numbers,
    _without_jit,
    _agreement,
)
