"""A signature counts with an identity that the reader trusts, in our namespace, over exactly these bytes."""

import shutil
import subprocess

import evidence_sample as sample
import pytest

from kit.cli import main
from kit.errors import BundleInvalid, UsageError
from kit.evidence.manifest import MANIFEST, SIGNATURE
from kit.evidence.sign import NAMESPACE, checker, sign
from kit.evidence.verify import verify

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ada", "eve"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)], check=True
        )
    public = (folder / "ada.pub").read_text(encoding="utf-8")
    (folder / "allowed").write_text(f"ada@example.org {public}", encoding="utf-8")
    (folder / "pattern").write_text(f"*@example.org {public}", encoding="utf-8")
    (folder / "other_namespace").write_text(f'ada@example.org namespaces="git" {public}', encoding="utf-8")
    return folder


def check(path, *args):
    return verify(path, check_signature=checker(*args))


def test_signed_by_a_trusted_person_says_so(bundle, keys):
    assert sign(bundle, keys / "ada") == bundle / SIGNATURE
    found = check(bundle, keys / "allowed", "ada@example.org")
    assert found.exit_code == 0 and "Signed by ada@example.org" in found.worth and "this person vouches" in found.worth
    assert "ada@example.org" in check(bundle, keys / "allowed").worth


def test_signature_by_an_unknown_key_is_no_pass_for_who_asks_who_signed(bundle, keys):
    sign(bundle, keys / "eve")
    assert check(bundle, keys / "allowed").exit_code == 3
    assert check(bundle, keys / "allowed", "ada@example.org").exit_code == 3
    found = check(bundle)
    assert found.exit_code == 0 and "nobody vouches" in found.worth


def test_unsigned_bundle_is_no_pass_for_who_asks_who_signed(bundle, keys):
    assert check(bundle, keys / "allowed").exit_code == 3
    assert check(bundle).exit_code == 0


def test_identity_and_namespace_are_always_checked(bundle, keys):
    sign(bundle, keys / "ada")
    assert check(bundle, keys / "allowed", "eve@example.org").exit_code == 3
    assert check(bundle, keys / "other_namespace").exit_code == 3
    (bundle / SIGNATURE).unlink()
    subprocess.run(
        ["ssh-keygen", "-q", "-Y", "sign", "-f", str(keys / "ada"), "-n", "file", str(bundle / MANIFEST)],
        check=True,
        capture_output=True,
    )
    assert NAMESPACE != "file" and check(bundle, keys / "allowed").exit_code == 4


def test_signature_of_another_bundle_is_invalid(bundle, keys, tmp_path):
    other = sample.make(tmp_path / "other", speed=2.0)
    sign(other, keys / "ada")
    shutil.copy(other / SIGNATURE, bundle / SIGNATURE)
    assert check(bundle, keys / "allowed").exit_code == 4


def test_every_byte_of_a_signature_counts(bundle, keys):
    sign(bundle, keys / "ada")
    data = (bundle / SIGNATURE).read_bytes()
    for at in [*range(0, len(data), 37), len(data) - 1]:
        (bundle / SIGNATURE).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert check(bundle).exit_code == 4, at
    (bundle / SIGNATURE).write_bytes(data + b"\n")
    assert check(bundle).exit_code == 4


def test_signature_that_is_not_checked_is_said_to_be_so(bundle, keys):
    sign(bundle, keys / "ada")
    found = verify(bundle)
    assert found.exit_code == 0 and "the signature was not checked here" in found.worth


def test_pattern_of_the_file_is_shown_as_a_pattern(bundle, keys):
    sign(bundle, keys / "ada")
    found = check(bundle, keys / "pattern")
    assert found.exit_code == 0 and "the pattern '*@example.org' admits: no person is named" in found.worth
    assert "Signed by ada@example.org" in check(bundle, keys / "pattern", "ada@example.org").worth


def test_demanded_signer_that_cannot_be_checked_is_inconclusive(bundle, keys, monkeypatch):
    sign(bundle, keys / "ada")
    monkeypatch.setenv("PATH", "")
    assert check(bundle, keys / "allowed", "ada@example.org").exit_code == 3
    assert check(bundle, keys / "allowed").exit_code == 3
    # Nobody asked who signed: it is told that nothing was checked.
    found = check(bundle)
    assert found.exit_code == 0 and "not checked, since ssh-keygen is not installed" in found.worth


@pytest.mark.parametrize(
    "demand", [["--identity", "ada"], ["--identity", "", "--allowed-signers", "allowed"], ["--allowed-signers", "none"]]
)
def test_demand_that_cannot_be_met_is_a_usage_error(bundle, keys, demand, capsys, monkeypatch):
    monkeypatch.chdir(keys)
    assert main(["verify", str(bundle), *demand]) == 2
    assert "Expected" in capsys.readouterr().err
    assert main(["verify", str(bundle)]) == 0


def test_nothing_is_signed_that_does_not_verify(bundle, keys):
    (bundle / "README.md").write_bytes(b"better words")
    with pytest.raises(BundleInvalid, match="does not verify: changed: README.md"):
        sign(bundle, keys / "ada")
    assert not (bundle / SIGNATURE).exists()


def test_wrong_key_or_bundle_is_a_usage_error(bundle, tmp_path):
    with pytest.raises(UsageError, match="could not sign"):
        sign(bundle, tmp_path / "nokey")
    with pytest.raises(UsageError, match="has no manifest.json"):
        sign(tmp_path, tmp_path / "nokey")
    assert not (bundle / SIGNATURE).exists()
