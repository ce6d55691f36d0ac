"""Other people's validators accept what we export, and refuse it where it is wrong."""

import dataclasses
import json
import subprocess
import sys
import typing
from importlib import resources
from pathlib import Path

import evidence_sample as sample
import pytest

from kit.evidence import contents
from kit.records import Check, Outcome, Verdict, loads

REAL = [path.parent for path in Path(__file__).parents[2].glob("reports/*/evidence.json")]
SCHEMA = loads(resources.files("kit.evidence").joinpath("evidence.schema.json").read_bytes())


def test_schema_names_every_field_and_no_other():
    kinds = {"check": Check, "number": contents.Number, "promise": contents.Promise, "notebook": contents.NotebookRun}
    for name, kind in kinds.items():
        fields = [field.name for field in dataclasses.fields(kind)]
        assert list(SCHEMA["$defs"][name]["properties"]) == fields == SCHEMA["$defs"][name]["required"]
    assert (
        list(SCHEMA["properties"])
        == [field.name for field in dataclasses.fields(contents.Evidence)]
        == SCHEMA["required"]
    )
    assert list(SCHEMA["properties"]["verdict"]["properties"]) == [field.name for field in dataclasses.fields(Verdict)]
    assert SCHEMA["$defs"]["outcome"]["enum"] == [str(outcome) for outcome in Outcome]
    assert SCHEMA["properties"]["schema_version"]["const"] == contents.SCHEMA_VERSION
    assert typing.get_type_hints(contents.Evidence)["state"] is str


@pytest.fixture(scope="session")
def validator():
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    return jsonschema.Draft202012Validator(SCHEMA)


def test_evidence_fits_the_schema(bundle, validator):
    for path in (bundle, *REAL):
        validator.validate(json.loads((path / "evidence.json").read_bytes()))


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.pop("nonce"),
        lambda e: e.update(more=1),
        lambda e: e.update(state="RUNNING"),
        lambda e: e.update(state="FAILED"),
        lambda e: e["verdict"]["checks"].clear(),
        lambda e: e["numbers"][0].update(value="39"),
        lambda e: e["numbers"][3].update(value=None, reason=None),
        lambda e: e.update(started_utc="2026-11-01 12:00"),
        lambda e: e["notebooks"][0].update(template_sha256="x"),
    ],
)
def test_evidence_that_is_wrong_does_not_fit(bundle, validator, change):
    evidence = json.loads((bundle / "evidence.json").read_bytes())
    change(evidence)
    assert not validator.is_valid(evidence)


def test_sums_hold_for_everyones_tool(bundle):
    done = subprocess.run(
        ["sha256sum", "-c", "--strict", "--quiet", "SHA256SUMS"], cwd=bundle, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_crate_names_every_file_with_its_hash(bundle):
    from kit.evidence.manifest import Entry

    graph = {entity["@id"]: entity for entity in loads((bundle / "ro-crate-metadata.json").read_bytes())["@graph"]}
    names = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    listed = {part["@id"] for part in graph["./"]["hasPart"]}
    assert listed == names - {"ro-crate-metadata.json", "manifest.json", "SHA256SUMS"}
    for name in listed:
        assert graph[name]["sha256"] == Entry.of(name, (bundle / name).read_bytes()).sha256


def test_roc_validator_accepts_the_crate_offline_and_refuses_one_that_is_wrong(bundle, tmp_path):
    """In a process of its own, since it warns at import and keeps a global cache."""
    pytest.importorskip("rocrate_validator", reason="roc-validator is not installed")
    pytest.importorskip("rocrate", reason="rocrate, which carries the 1.1 context, is not installed")
    crates = [sample.make(tmp_path, state=state, run_id=state) for state in ("COMPLETE", "FAILED")]
    path = bundle / "ro-crate-metadata.json"
    crate = json.loads(path.read_bytes())
    del crate["@graph"][1]["datePublished"]
    path.write_text(json.dumps(crate), encoding="utf-8")
    command = [sys.executable, str(Path(__file__).with_name("validate_crate.py")), *map(str, [*crates, bundle])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    complete, failed, wrong = json.loads(done.stdout.splitlines()[-1])
    assert complete == failed == [] and wrong
