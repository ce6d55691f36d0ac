"""What CUDA makes of CUDA_VISIBLE_DEVICES: indices or UUID prefixes up to the first that does not exist."""

from __future__ import annotations

from collections.abc import Sequence


def mask_problem(value: str | None, count: int | None, uuids: Sequence[str | None] = ()) -> str | None:
    """Why this value leaves no device, in words; None where it leaves some, or where that cannot be told.

    count: how many GPUs the driver lists, None where unknown. ' 0' with a space is valid.
    Source: CUDA C++ Programming Guide, environment variables.
    """
    if value is None:
        return None
    tokens = [token.strip() for token in value.split(",")]
    if not value.strip():
        return "the empty value hides every GPU"
    if len(set(tokens)) < len(tokens):
        twice = next(token for token in tokens if tokens.count(token) > 1)
        return f"{twice!r} stands twice, and CUDA then shows no GPU"
    first = tokens[0]
    if first.lstrip("+").isdigit():
        if count is not None and int(first) >= count:
            return f"GPU {first} does not exist, the driver lists {count} (numbers start at 0)"
        return None
    if first.startswith(("GPU-", "MIG-")):
        known = [uuid for uuid in uuids if uuid]
        is_wrong = first.startswith("GPU-") and known and not any(uuid.startswith(first) for uuid in known)
        return f"no GPU has the UUID {first[:12]}…" if is_wrong else None
    return f"{first!r} is no GPU number or UUID, so every GPU is hidden"
