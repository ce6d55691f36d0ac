"""The guard: one line in any script, and a clear error that names the first tensor that is elsewhere.

'cpu' expected stands for the GPU that is there; 'cuda' expected on a CPU model, or a tensor on
'meta', for the fallback.
"""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import kit
from kit import GpuGuardCallback, gpu_guard
from kit.errors import GpuNotUsable, UsageError

ROOT = Path(kit.__file__).resolve().parents[1]


def small():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    return model, torch.optim.AdamW(model.parameters())


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()


def refusal(*args, **more):
    with pytest.raises(GpuNotUsable) as caught:
        gpu_guard(*args, **more)
    return caught.value


# --- as a check ---------------------------------------------------------------------


def test_a_model_on_the_cpu_is_refused_by_the_name_of_its_first_parameter():
    """B01, B10."""
    error = refusal(*small())
    assert error.found == "parameter 0.weight is on cpu" and error.expected == "all of the training on cuda"
    if not torch.cuda.is_available():
        assert "has no usable CUDA device here: python -m kit check" in error.todo


def test_the_healthy_twin_passes():
    model, optimizer = small()
    step(model, optimizer)
    gpu_guard(model, optimizer, {"x": torch.ones(2), "n": 3}, device="cpu")


@pytest.mark.parametrize("kind", ["parameter", "gradient", "buffer", "state", "batch"])
def test_one_tensor_elsewhere_is_named(kind):
    model, optimizer = small()
    step(model, optimizer)
    elsewhere, batch = torch.empty(4, device="meta"), None
    if kind in ("parameter", "gradient"):
        model[2].register_parameter("extra", torch.nn.Parameter(elsewhere))
    if kind == "buffer":
        model[1].running_mean = elsewhere
    if kind == "state":
        optimizer.state[model[0].weight]["exp_avg"] = elsewhere
    if kind == "batch":
        batch = {"ids": [torch.ones(1), (elsewhere,)]}
    named = {
        "parameter": "parameter 2.extra",
        "gradient": "parameter 2.extra",
        "buffer": "buffer 1.running_mean",
        "state": "optimizer state exp_avg of 0.weight",
        "batch": "batch['ids'][1][0]",
    }
    error = refusal(model, optimizer, batch, device="cpu")
    assert error.found == f"{named[kind]} is on meta" and error.todo == "move it with .to('cpu') before training"


def test_counters_that_optimizers_keep_on_the_cpu_are_allowed():
    model, optimizer = small()
    step(model, optimizer)
    optimizer.state[model[0].weight]["step"] = torch.tensor(1.0, device="meta")
    gpu_guard(model, optimizer, device="cpu")


def test_state_of_a_parameter_outside_the_model_is_looked_at():
    model, _ = small()
    other = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([other])
    optimizer.state[other]["exp_avg"] = torch.empty(2, device="meta")
    assert "of a parameter outside the model is on meta" in refusal(model, optimizer, device="cpu").found


def test_nothing_to_look_at_is_no_success():
    assert "no parameter" in refusal(torch.nn.ReLU(), device="cpu").found


@pytest.mark.parametrize("batch", [torch.empty(1, device="meta"), [torch.empty(1, device="meta")]])
def test_a_batch_may_be_nested_or_not(batch):
    assert refusal(small()[0], None, batch, device="cpu").found.startswith("batch")


def test_a_batch_that_is_an_object_is_looked_into():
    class Rows:
        def __init__(self):
            self.labels, self.name = torch.empty(1, device="meta"), "rows"

    assert refusal(small()[0], None, Rows(), device="cpu").found == "batch.labels is on meta"
    from collections import UserDict

    assert "batch['ids']" in refusal(small()[0], None, UserDict(ids=torch.empty(1, device="meta")), device="cpu").found


# --- around a loop ------------------------------------------------------------------


def test_a_loop_that_stays_passes_and_is_counted():
    model, optimizer = small()
    with gpu_guard(model, optimizer, device="cpu") as guard:
        for _ in range(3):
            step(model, optimizer)
    assert guard.steps == 3
    assert not model._forward_hooks and not optimizer._optimizer_step_post_hooks


class Offloaded(torch.optim.SGD):
    """Makes its state when it is first needed, elsewhere."""

    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["momentum"] = torch.empty(2, device="meta")


def test_optimizer_state_on_another_device_is_found_at_the_first_step():
    """B06."""
    model = small()[0]
    with pytest.raises(GpuNotUsable, match=r"momentum of 0\.weight is on meta at step 1"):
        with gpu_guard(model, optimizer := Offloaded(model.parameters(), lr=0.1), device="cpu"):
            step(model, optimizer)


@pytest.mark.parametrize("which", ["parameter", "buffer"])
def test_a_tensor_that_leaves_later_is_found_at_that_step(which):
    model, optimizer = small()
    with pytest.raises(GpuNotUsable, match="at step 3"), gpu_guard(model, optimizer, device="cpu") as guard:
        step(model, optimizer)
        step(model, optimizer)
        if which == "buffer":
            model[1].num_batches_tracked = torch.empty((), device="meta")
        else:
            guard._parameters[0] = torch.nn.Parameter(torch.empty(1, device="meta"))
            model[0].register_parameter("late", guard._parameters[0])
        guard.after_step()


def test_layers_that_are_added_later_are_found_at_the_next_full_look():
    model, optimizer = small()
    with pytest.raises(GpuNotUsable, match=r"late\.weight is on meta at step 101"):
        with gpu_guard(model, optimizer, device="cpu") as guard:
            for number in range(102):
                if number == 1:
                    model.add_module("late", torch.nn.Linear(2, 2, device="meta"))
                guard.after_step()


def test_most_steps_do_not_walk_the_model_again(monkeypatch):
    model, optimizer = small()
    walks = []
    real = model.named_parameters
    monkeypatch.setattr(model, "named_parameters", lambda *a, **k: walks.append(1) or real(*a, **k))
    with gpu_guard(model, optimizer, device="cpu"):
        at_first = len(walks)
        for _ in range(50):
            step(model, optimizer)
    assert len(walks) == 2 * at_first


def test_an_output_on_another_device_is_refused():
    class Falls(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

        def forward(self, x):
            self.layer(x)
            return {"loss": torch.ones(1, device="meta", requires_grad=True)}

    model = Falls()
    with pytest.raises(GpuNotUsable, match=r"the model's output\['loss'\] is on meta at step 1"):
        with gpu_guard(model, torch.optim.SGD(model.parameters(), lr=0.1), device="cpu"):
            model(torch.ones(1, 2))


def test_inputs_may_be_moved_inside_the_model():
    """B07: no fallback, only slower."""

    class Moves(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

        def forward(self, x):
            return self.layer(torch.ones(1, 2))

    model = Moves()
    with gpu_guard(model, device="cpu") as guard:
        model(torch.empty(1, 2, device="meta"))
        model.eval()
        model(torch.empty(1, 2, device="meta"))
    assert guard.steps == 1


class Wrapper:
    """As accelerate's: it holds the optimizer and passes on what it is asked for, without hooks of its own."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        self.optimizer.step()

    def zero_grad(self):
        self.optimizer.zero_grad()


def test_a_wrapped_optimizer_is_looked_into():
    model, optimizer = small()
    with gpu_guard(model, Wrapper(Wrapper(optimizer)), device="cpu") as guard:
        step(model, Wrapper(optimizer))
    assert guard.steps == 1
    optimizer.state[model[0].weight]["exp_avg"] = torch.empty(1, device="meta")
    assert "exp_avg" in refusal(model, Wrapper(optimizer), device="cpu").found


def test_an_optimizer_without_hooks_is_counted_by_forward_passes():
    class Plain:
        def __init__(self, model):
            self.param_groups, self.state = [{"params": list(model.parameters())}], {}

    model = small()[0]
    with gpu_guard(model, Plain(model), device="cpu") as guard:
        model(torch.ones(2, 4))
        model(torch.ones(2, 4))
    assert guard.steps == 2


def test_a_guard_that_saw_no_step_warns():
    model, optimizer = small()
    with pytest.warns(RuntimeWarning, match="nothing was guarded"), gpu_guard(model, optimizer, device="cpu"):
        pass


def test_an_error_of_the_loop_itself_passes_through_alone():
    model, optimizer = small()
    with warnings.catch_warnings(), pytest.raises(KeyError):
        warnings.simplefilter("error")
        with gpu_guard(model, optimizer, device="cpu"):
            raise KeyError("mine")


# --- the day this kit came from -----------------------------------------------------

SCRIPT = """
import sys, torch
from kit import gpu_guard
device = "cuda" if torch.cuda.is_available() else "cpu"
model = torch.nn.Linear(8, 8).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
print("Device: cuda")
with gpu_guard(model, optimizer, device=sys.argv[1]):
    for step in range(14):
        loss = model(torch.randn(4, 8, device=device)).square().mean()
        optimizer.zero_grad(); loss.backward(); optimizer.step()
print("final loss", loss.item())
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="the fallback needs a machine without a GPU")
def test_a_script_that_says_cuda_and_trains_on_the_cpu_is_stopped():
    def run(expected):
        command = [sys.executable, "-c", SCRIPT, expected]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")

    fallen, rehearsed = run("cuda"), run("cpu")
    assert fallen.returncode == 1 and "final loss" not in fallen.stdout
    assert "GpuNotUsable: parameter weight is on cpu" in fallen.stderr and "To do:" in fallen.stderr
    assert rehearsed.returncode == 0 and "final loss" in rehearsed.stdout


def test_the_guard_needs_torch_alone():
    program = "import kit.train.guard, sys; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_another_device_is_a_mistake_of_the_caller():
    with pytest.raises(UsageError, match="device='gpu'"):
        gpu_guard(small()[0], device="gpu")


def test_an_unknown_name_is_an_attribute_error():
    import kit.train.guard

    with pytest.raises(AttributeError, match="no attribute 'GpuGaurd'"):
        kit.train.guard.GpuGaurd  # noqa: B018


# --- inside transformers' Trainer ---------------------------------------------------


class Rows(torch.utils.data.Dataset):
    """Ten rows: with batches of four the last one is short."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return {"x": torch.full((4,), float(index)), "labels": torch.zeros(1)}


class Regression(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, x, labels=None):
        return {"loss": (self.layer(x) - labels).square().mean()}


def trainer(folder, callback, **more):
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=4,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **more,
    )
    return Trainer(model=Regression(), args=arguments, train_dataset=Rows(), eval_dataset=Rows(), callbacks=[callback])


@pytest.fixture
def quiet():
    """transformers' and accelerate's own warnings are not ours to judge."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate, which the kit does not")
        yield


@pytest.mark.skipif(torch.cuda.is_available(), reason="the fallback needs a machine without a GPU")
def test_the_trainer_on_the_cpu_is_stopped_before_its_first_step(quiet, tmp_path):
    callback = GpuGuardCallback()
    with pytest.raises(GpuNotUsable, match=r"parameter layer\.weight is on cpu"):
        trainer(tmp_path, callback, max_steps=2).train()
    assert callback.samples == 0


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_samples_are_counted_at_the_model_whatever_the_accumulation(quiet, tmp_path, accumulation):
    """B23, B26: two passes over ten rows are twenty samples; evaluation in between is not training."""
    callback = GpuGuardCallback(device="cpu")
    run = trainer(
        tmp_path, callback, num_train_epochs=2, gradient_accumulation_steps=accumulation, eval_strategy="epoch"
    )
    run.train()
    assert callback.samples == 20 and callback.seconds > 0
    assert callback.samples_per_s == pytest.approx(20 / callback.seconds)
    assert callback._guard.steps == run.state.global_step
    assert not run.model._forward_pre_hooks


def test_the_count_is_true_where_the_trainers_is_nominal(quiet, tmp_path):
    """max_steps × batch size is 5 × 4 = 20; the third batch of each pass has two rows."""
    callback = GpuGuardCallback(device="cpu")
    found = trainer(tmp_path, callback, max_steps=5).train()
    nominal = found.metrics["train_samples_per_second"] * found.metrics["train_runtime"]
    assert callback.samples == 4 + 4 + 2 + 4 + 4 and nominal == pytest.approx(20, rel=0.05)


def test_optimizer_state_is_looked_at_inside_the_trainer(quiet, tmp_path):
    run = trainer(tmp_path, GpuGuardCallback(device="cpu"), max_steps=1)
    run.optimizer = Offloaded(run.model.parameters(), lr=0.1)
    with pytest.raises(GpuNotUsable, match=r"momentum of layer\.weight is on meta"):
        run.train()
