"""The control that must fail, and fail for the right reason; else the report is worth nothing."""

import dataclasses
import subprocess
import sys

import pytest
from verdict_sample import DATA, healthy

from kit.errors import KitError
from kit.evidence.conclude import control_check, judge_control, judge_environment
from kit.gpu.facts import MachineFacts
from kit.records import Outcome, from_json, loads
from kit.train import control
from kit.train.steps import ControlRecord


def recorded():
    found = from_json(ControlRecord, loads((DATA / "h100_smoke" / "negative_control.json").read_bytes()))
    # From before torch's own count was recorded.
    return dataclasses.replace(found, visible_devices=0)


def with_run(record, **changes):
    return dataclasses.replace(record, run=dataclasses.replace(record.run, **changes))


def test_the_recorded_control_flipped():
    check = control_check(recorded())
    assert check.outcome is Outcome.PASS and check.todo == ""
    assert check.found.startswith("FAIL (visible_devices_masked); environment FAIL, native.placement FAIL")
    assert check.values["seconds"] == pytest.approx(11.468, rel=0.001)
    assert judge_control(recorded()).outcome is Outcome.FAIL


def test_a_newer_recorded_control_flipped_within_its_time():
    record = from_json(ControlRecord, loads((DATA / "h100_witnessed" / "negative_control.json").read_bytes()))
    record = dataclasses.replace(record, visible_devices=0)
    check = control_check(record)
    assert check.outcome is Outcome.PASS and check.values["seconds"] < 15
    assert record.run.profile.products == {"cpu": 3}


def test_a_control_that_looks_healthy_makes_the_report_invalid():
    sample, facts = healthy(), from_json(MachineFacts, loads((DATA / "h100_smoke" / "begin.json").read_bytes()))
    check = control_check(ControlRecord(facts, sample.run, sample.steps, 9.0))
    assert check.outcome is Outcome.INVALID and "do not trust this report" in check.todo
    assert judge_environment(ControlRecord(facts, sample.run, sample.steps, 9.0)).outcome is Outcome.PASS


def test_each_part_of_the_detector_has_to_see_it():
    record, sample = recorded(), healthy()
    facts = from_json(MachineFacts, loads((DATA / "h100_smoke" / "begin.json").read_bytes()))
    blind = {
        "environment": dataclasses.replace(record, facts=facts),
        "the mask": dataclasses.replace(record, visible_devices=1),
        "no count": dataclasses.replace(record, visible_devices=None),
        "placement": with_run(record, audits=sample.run.audits),
        "kernels": with_run(record, profile=sample.run.profile),
        "no profile": with_run(record, profile=None),
        "the CPU's products": with_run(record, profile=dataclasses.replace(record.run.profile, cpu_operators={})),
        "no claim": with_run(record, config=dataclasses.replace(record.run.config, device="cpu")),
        "no work": dataclasses.replace(record, steps=()),
    }
    for name, changed in blind.items():
        assert control_check(changed).outcome is Outcome.INVALID, name


def test_a_control_that_was_not_run_is_inconclusive():
    check = control_check(None)
    assert check.outcome is Outcome.INCONCLUSIVE and "python -m kit" in check.todo and check.required


@pytest.mark.parametrize(("program", "words"), [
    ("print('no record')", "exit code 0"), ("raise SystemExit('broken')", "exit code 1: broken"),
    ("import time; time.sleep(9)", "no answer within 1 s"),
    ("import sys; open(sys.argv[1], 'w').write('{\"facts\": 1}')", "exit code 0"),
])  # fmt: skip
def test_a_child_without_a_record_is_an_error_with_its_reason(monkeypatch, program, words):
    real = subprocess.run
    monkeypatch.setattr(
        control.subprocess, "run", lambda command, **more: real([sys.executable, "-c", program, command[-1]], **more)
    )
    monkeypatch.setattr(control, "_TIMEOUT_S", 1)
    with pytest.raises(KitError, match="gave no record") as caught:
        control.run_control()
    assert words in caught.value.found


def test_the_child_is_judged_by_the_same_code_and_flips_whatever_surrounds_it(monkeypatch, tmp_path):
    """The real one, in a process of its own. Its record is a file, and the mask its own."""
    (tmp_path / "sitecustomize.py").write_text("import atexit\natexit.register(print, 'bye')\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.chdir(tmp_path)
    record = control.run_control()
    assert control_check(record).outcome is Outcome.PASS and record.visible_devices == 0
    assert record.facts.environment["CUDA_VISIBLE_DEVICES"] == "-1"
    assert {step.products for step in record.steps} == {0} and all(step.elsewhere for step in record.steps)
    checks = {check.id: check for check in judge_control(record).checks}
    # A toy model by SGD, so what only GPT-2 under AdamW can show is not asked.
    learned = [f"learning.{name}" for name in ("finite", "applied", "supervised_tokens", "moved", "canary")]
    learned += [id for id in checks if id.startswith("integrity")]
    assert {checks[id].outcome for id in learned} == {Outcome.PASS}
    assert checks["native.kernels"].values["cpu_products"] == 3
    assert "parameter embedding.weight on cpu" in checks["native.placement"].found
    assert record.run.config.device == "cuda" and record.run.device_name == "CPU"
