"""A completion script for bash and zsh, made from the parser, so that it cannot fall behind it.

It completes commands, options and the choices of an option; everything else is left to the shell.
"""

from __future__ import annotations

import argparse

_SCRIPT = """\
[ -n "$ZSH_VERSION" ] && autoload -U +X bashcompinit && bashcompinit
_kit() {{
  local command="${{COMP_WORDS[1]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
  local cur="${{COMP_WORDS[COMP_CWORD]}}" words=""
  case "$cur" in
    -*) case "$command" in
{options}
    esac ;;
    *) case "$command:$before" in
{choices}
    esac ;;
  esac
  [ "$COMP_CWORD" -eq 1 ] && words="{commands}"
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -o default -o bashdefault -F _kit kit
"""


def script(parser: argparse.ArgumentParser) -> str:
    """What `eval "$(kit completion)"` runs in the shell of a person."""
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices
    options, choices = [], []
    for name, command in commands.items():
        named = [action for action in command._actions if action.option_strings]
        options.append(f'      {name}) words="{" ".join(o for action in named for o in action.option_strings)}" ;;')
        for action in named:
            if action.choices:
                pattern = "|".join(f"{name}:{option}" for option in action.option_strings)
                choices.append(f'      {pattern}) words="{" ".join(map(str, action.choices))}" ;;')
    return _SCRIPT.format(commands=" ".join(commands), options="\n".join(options), choices="\n".join(choices))
