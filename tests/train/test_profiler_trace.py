"""Reading a profiler's trace: real ones of an H100, and small ones made by hand for each way a launch can be tied."""

import json

import pytest
from verdict_sample import DATA

from kit.train.config import MODELS, weight_products
from kit.train.profile import kind_of, matmul_flop, read_trace


def real(dtype):
    return json.loads((DATA / "h100_traces" / f"{dtype}.json").read_text(encoding="utf-8"))


def without(trace, category):
    return {"traceEvents": [event for event in trace["traceEvents"] if event["cat"] != category]}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_product_of_a_real_step_is_taken_for_the_cpus(dtype):
    """In bfloat16 cuBLASLt launches through the driver API, whose kernels carry no operator's id."""
    profile = read_trace(real(dtype), step_time_s=0.01)
    assert profile.cpu_operators == {}
    assert profile.matmul_kernels >= weight_products(MODELS["tiny"])
    assert profile.device_time_s == pytest.approx(sum(profile.groups.values()))
    assert 0.001 < profile.device_time_s < 0.002 and profile.step_time_s == 0.01


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_launches_that_the_profiler_did_not_trace_accuse_nobody(dtype):
    assert read_trace(without(real(dtype), "cuda_driver"), step_time_s=1.0).cpu_operators == {}


def test_products_of_a_trace_without_kernels_ran_on_the_cpu():
    profile = read_trace(without(real("float32"), "kernel"), step_time_s=1.0)
    assert profile.cpu_operators == {"aten::mm": 19, "aten::addmm": 8}
    assert profile.kernels == 0 and profile.device_time_s == 0


# --- by hand ------------------------------------------------------------------------


def operator(name="aten::mm", ts=10.0, dur=5.0, tid=1, id=1, dims=((256, 768), (768, 768))):
    args = {"External id": id, "Input Dims": [list(shape) for shape in dims]}
    return {"ph": "X", "cat": "cpu_op", "name": name, "ts": ts, "dur": dur, "tid": tid, "args": args}


def launch(ts=12.0, tid=1, correlation=7, cat="cuda_driver"):
    name = {"cuda_driver": "cuLaunchKernelEx", "cuda_runtime": "cudaLaunchKernel"}[cat]
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": 1.0, "tid": tid, "args": {"correlation": correlation}}


def kernel(name="nvjet_sm90_tst_64x40", id=None, correlation=7):
    args = {"correlation": correlation} | ({} if id is None else {"External id": id})
    return {"ph": "X", "cat": "kernel", "name": name, "ts": 20.0, "dur": 3.0, "tid": 7, "args": args}


MM = {"aten::mm": 1}
LONE = kernel(correlation=99)
ATTENTION = "aten::_scaled_dot_product_flash_attention_for_cpu"
WITHOUT_DURATION = {key: value for key, value in operator().items() if key != "dur"}
BARE = {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 10.0, "tid": 1}


def square(n, k):
    return operator(dims=((n, k), (k, n)))


# What belongs to a kernel, and what is left for the CPU.
# fmt: off
TIED = {
    "by the external id": ([operator(id=4), kernel(id=4)], {}),
    "by no external id": ([operator(id=4), kernel(id=5), launch(ts=99.0)], MM),
    **{f"by a {cat} inside it": ([operator(), launch(cat=cat), kernel()], {}) for cat in ("cuda_driver", "cuda_runtime")},
    **{f"by a launch at {ts}": ([operator(), launch(ts=ts), kernel()], {}) for ts in (10.0, 15.0)},
    **{f"by no launch, at {ts}": ([operator(), launch(ts=ts), kernel()], MM) for ts in (9.9, 15.1)},
    "not by a launch on another thread": ([operator(), launch(tid=2), kernel()], MM),
    "not by a launch without a kernel": ([operator(), launch(correlation=8), kernel(correlation=7), launch(ts=50.0)], MM),
    "by a second launch behind a first": ([operator(), launch(ts=1.0, correlation=6), kernel(correlation=6), launch(ts=12.0), kernel()], {}),
    "a kernel tied to nothing excuses a product": ([operator(), LONE], {}),
    "and one alone": ([operator(), operator(ts=30.0), LONE], {"aten::mm": 2}),
    "a kernel of another name excuses none": ([operator(), kernel(name="spin_kernel", correlation=99)], MM),
    "nor one with a launch": ([operator(), launch(ts=99.0, correlation=5), kernel(correlation=5)], MM),
    "nor one of the runtime": ([operator(), launch(ts=99.0, correlation=5, cat="cuda_runtime"), kernel(correlation=5)], MM),
    "nor one with an operator's id": ([operator(), operator(name="aten::add", id=9), kernel(correlation=99, id=9)], MM),
    "a small product is no witness": ([square(10, 10)], {}),
    "nor one of unknown size": ([operator(dims=())], {}),
    "nor one just under the limit": ([square(100, 49)], {}),
    "one at the limit is": ([square(100, 50)], MM),
    "nor another operator": ([operator(name="aten::add")], {}),
    "one among others": ([operator(name="aten::add"), operator(id=4), square(10, 10), operator(ts=99.0, id=5), kernel(id=4)], MM),
    **{name: ([operator(name=name)], {name: 1}) for name in ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", ATTENTION)},
    "an operator without arguments": ([BARE, launch(), kernel()], {}),
    "without a duration, at the launch": ([WITHOUT_DURATION, launch(ts=10.0), kernel()], {}),
    "without a duration, before the launch": ([WITHOUT_DURATION, launch(ts=10.5), kernel()], MM),
    "an event of another phase": ([{"ph": "i", "name": "aten::mm"}, operator()], MM),
}
# fmt: on


@pytest.mark.parametrize("name", TIED)
def test_a_product_belongs_to_its_kernel_or_ran_on_the_cpu(name):
    events, found = TIED[name]
    assert read_trace({"traceEvents": events}, step_time_s=1e-4).cpu_operators == found


def test_copies_over_the_bus_are_counted_and_those_on_the_device_are_not():
    def copy(name, size):
        return {"ph": "X", "cat": "gpu_memcpy", "name": name, "ts": 1.0, "dur": 1.0, "args": {"bytes": size}}

    events = [copy("Memcpy HtoD (Pageable -> Device)", 100), copy("Memcpy DtoH (Device -> Pinned)", 20),
              copy("Memcpy DtoD (Device -> Device)", 5), copy("Memcpy DtoD", 5)]  # fmt: skip
    events.append({"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy HtoD", "ts": 1.0})
    profile = read_trace({"traceEvents": events}, step_time_s=1.0)
    assert (profile.copies, profile.copied_bytes) == (3, 120)


def test_kernel_times_are_seconds_by_name_and_kind():
    long = "x" * 130 + "gemm"
    kernels = [{**kernel(name=f"gemm_{n}", correlation=n), "dur": 10.0 + n} for n in range(14)]
    kernels += [
        {**kernel(name=long), "dur": 500.0},
        {**kernel(name=long), "dur": 500.0},
        {**kernel(name="adam"), "dur": 7.0},
    ]
    del kernels[0]["dur"]
    profile = read_trace({"traceEvents": kernels}, step_time_s=2.0)
    assert profile.device_time_s == pytest.approx((sum(range(11, 24)) + 1000 + 7) / 1e6)
    assert list(profile.top_kernels)[:2] == ["x" * 120, "gemm_13"] and len(profile.top_kernels) == 12
    assert profile.top_kernels["x" * 120] == pytest.approx(1e-3)
    assert list(profile.groups) == ["matmul", "optimizer"] and profile.groups["optimizer"] == pytest.approx(7e-6)
    assert (profile.kernels, profile.matmul_kernels, profile.step_time_s) == (17, 16, 2.0)


def test_an_empty_trace_has_no_kernel():
    profile = read_trace({}, step_time_s=1.0)
    assert (profile.kernels, profile.matmul_kernels, profile.device_time_s) == (0, 0, 0)
    assert read_trace({"traceEvents": [{"ph": "M", "name": "process_name"}]}, step_time_s=1.0).kernels == 0


@pytest.mark.parametrize(("name", "kind"), [
    ("nvjet_sm90_tst_64x40_64x16_2x4_h_bz_bias_NNT", "matmul"),
    ("sm80_xmma_gemm_f32f32_f32f32_f32_nn_n", "matmul"),
    ("ampere_sgemm_128x64_nn", "matmul"), ("void gemv2T_kernel_val<int, float>", "matmul"),
    ("void cutlass::Kernel2<cutlass_80_simt_sgemm_128x128>", "matmul"), ("splitKreduce_kernel", "matmul"),
    ("fmha_cutlassB_f32_aligned_64x64_k64_sm80", "attention"), ("flash_bwd_dq_dk_dv_loop_kernel", "attention"),
    ("void at::native::multi_tensor_apply_kernel", "optimizer"), ("cunn_SoftMaxBackward", "loss"),
    ("vectorized_layer_norm_kernel", "norm"), ("spin_kernel", "other"),
])  # fmt: skip
def test_kernels_are_told_by_their_names(name, kind):
    assert kind_of(name) == kind


@pytest.mark.parametrize(("dims", "flop"), [
    ([[4, 5], [5, 6]], 240), ([[6], [4, 5], [5, 6]], 240), ([[3, 4, 5], [3, 5, 6]], 720), ([[4, 5]], 0), ([], 0),
    ([[4, 5], "scalar"], 0), ([(4, 5), (5, 6)], 240), ([[7, 7], [4, 5], [5, 6]], 240),
])  # fmt: skip
def test_flop_of_a_product_follow_from_its_shapes(dims, flop):
    assert matmul_flop(dims) == flop
