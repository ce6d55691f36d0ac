"""Questions about native code: what the table says of the build, what a run showed, and whether they agree.

Where a run showed what the table denies, the run counts, and the table's answer is no
longer required.
"""

from __future__ import annotations

from kit.gpu.question import FAIL, INCONCLUSIVE, PASS, SEE_REMEDY, Answer, Question


def arch(question: Question) -> Answer:
    held, proof = question.held, question.facts.proof
    values = {"how": held.how, "code": held.code, "is_exact": held.is_exact, "source": held.source}
    if held.how == "native":
        note = "" if held.is_exact else f" (note: not built for exactly this chip, runs {held.code} code)"
        return Answer(PASS, held.reason + note, values=values)
    if held.how in ("none", "ptx"):
        if question.ran and proof is not None and proof.ran_without_ptx_jit is not False:
            found = f"by the table: {held.reason}; a run decides, and the kernel ran"
            return Answer(INCONCLUSIVE, found, values=values, required=False)
        return Answer(FAIL, held.reason, "Install a build with code for this GPU (see the remedy).", values)
    return Answer(INCONCLUSIVE, held.reason, values=values, required=not question.ran)


def kernel(question: Question) -> Answer:
    proof, word = question.facts.proof, question.found.word
    if proof is None:
        is_plain = word == "ok" or question.facts.source == "text"
        found = "no kernel was run" if is_plain else f"no kernel could be run: {word}"
        return Answer(INCONCLUSIVE, found, "python -m kit check, on the machine itself")
    values = {"device": proof.device, "size": proof.size, "dtype": proof.dtype, "seconds": proof.seconds}
    if proof.device == "cpu":
        return Answer(FAIL, "the kernel ran on the CPU", "Ask for device cuda.", values)
    if proof.ran:
        return Answer(PASS, f"a {proof.size} x {proof.size} {proof.dtype} product ran", values=values)
    found = f"the kernel failed: {(proof.error or 'no text')[:300]}"
    if question.found.cause == "force_ptx_jit":
        found = question.found.because[0]
    return Answer(FAIL, found, SEE_REMEDY, values)


def numbers(question: Question) -> Answer | None:
    proof = question.facts.proof
    if proof is None or not proof.ran:
        return None
    error, limit = proof.max_relative_error, proof.limit
    if error is None or limit is None:
        return Answer(INCONCLUSIVE, "the result was not compared with float64")
    found, values = f"largest relative error {error:.2g}, limit {limit:.2g}", {"error": error, "limit": limit}
    if error <= limit:
        return Answer(PASS, found, values=values)
    return Answer(FAIL, found, "Do not trust this GPU or build; run again.", values)


def without_jit(question: Question) -> Answer | None:
    proof, torch = question.facts.proof, question.facts.torch
    if not question.ran or proof is None:
        return None
    if proof.ran_without_ptx_jit:
        return Answer(PASS, "it ran without PTX JIT: native code")
    if proof.ran_without_ptx_jit is False:
        why = (proof.jit_error or "it fails with JIT switched off")[:300]
        return Answer(FAIL, f"runs by PTX JIT, not native: {why}", "Install a build with native code (see the remedy).")
    listed = torch.arch_list if torch else ()
    if question.held.how == "native" and listed and not any(entry.startswith("compute_") for entry in listed):
        return Answer(PASS, "not tried; the build lists no PTX, so there is nothing to compile at run time")
    return Answer(INCONCLUSIVE, "not tried")


def agreement(question: Question) -> Answer | None:
    """The table against the run. A disagreement is worth knowing, but the run decides."""
    proof, held = question.facts.proof, question.held
    if proof is None or proof.device == "cpu" or held.how in ("unknown", "possible"):
        return None
    if question.found.cause == "force_ptx_jit":
        # the variable, not the build, decided
        return None
    says, shows = held.how == "native", proof.ran and proof.ran_without_ptx_jit is not False
    if says == shows:
        return Answer(PASS, "table and run agree", required=False)
    found = f"the table says {'yes' if says else 'no'} ({held.reason}), the run says {'yes' if shows else 'no'}"
    todo = "Trust the run; tell the maintainers of the table which GPU, driver and build this is."
    return Answer(INCONCLUSIVE, found, todo, required=False)
