"""The rules are one list: the command prints it, the page holds it."""

import json

import pytest

from kit.cli import every_rule, main
from tools.rules_page import PAGE, page


def test_the_page_holds_the_rules_as_they_are():
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text, "python -m tools.rules_page writes it anew"


def test_check_lists_every_rule_of_every_flow(capsys):
    assert main(["check", "--list", "--json"]) == 0
    listed = [row["id"] for row in json.loads(capsys.readouterr().out)]
    assert listed == [rule.id for rules in every_rule().values() for rule in rules] and len(listed) > 60


@pytest.mark.parametrize("flow", every_rule())
def test_no_rule_of_a_flow_stands_twice(flow):
    ids = [rule.id for rule in every_rule()[flow]]
    assert len(ids) == len(set(ids))
