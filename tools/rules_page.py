"""Writes the list of rules into docs/witnesses.md: `python -m tools.rules_page`. A test holds the page to the rules."""

import re

from kit.cli import every_rule
from kit.process import ROOT
from kit.rules import named

PAGE = ROOT / "docs" / "witnesses.md"
BEGIN, END = "<!-- rules, written by tools/rules_page.py -->", "<!-- end of rules -->"


def section() -> str:
    """Every rule, flow by flow: what a healthy case shows, and what to do where it does not."""
    lines = []
    for flow, rules in every_rule().items():
        lines += [f"### Of {flow}", "", "| rule | a healthy case | else |", "| --- | --- | --- |"]
        for rule in rules:
            optional = "" if rule.required else " (never required)"
            cells = (f"`{rule.id}`{optional}", named(rule.expected), named(rule.todo or rule.settle))
            lines.append("| " + " | ".join(cell.replace("|", "/").replace("<", "&lt;") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def page(text: str) -> str:
    """`text` with the section between its marks written anew."""
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    return pattern.sub(lambda _: f"{BEGIN}\n{section()}{END}", text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
