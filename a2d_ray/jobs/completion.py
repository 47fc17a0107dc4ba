"""Completion of jobs, files and keys, for bash and zsh.

The shell asks ``a2d completion words ...`` what may stand next: so it is right for the version that
is installed.
"""

import sys
from collections.abc import Sequence
from typing import Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from a2d_ray import config
from a2d_ray.cli.command import CONFIGS
from a2d_ray.config.keys import all_keys, find_field, section_of
from a2d_ray.jobs.table import JOBS

_BASH = """\
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
_a2d() {
    local current=${COMP_WORDS[COMP_CWORD]}
    local IFS=$'\\n'
    COMPREPLY=($(a2d completion words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace
    [[ ${#COMPREPLY[@]} -eq 0 ]] && COMPREPLY=($(compgen -f -- "$current"))
}
complete -o nosort -F _a2d a2d
"""
_ZSH = """\
#compdef a2d
_a2d() {
    local -a found
    found=("${(@f)$(a2d completion words "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    compadd -S '' -- ${found:#} || _files
}
compdef _a2d a2d
"""
_FLAGS = ("--dry-run", "--help", "--verbose")


def complete(args: Sequence[str]) -> None:
    """Prints a shell's script, or what may stand where the last of the words is.

    Args:
        args: ``bash``, ``zsh``, or ``words`` and what was typed behind ``a2d``, the last word in
            part.
    """
    scripts = {"bash": _BASH, "zsh": _ZSH}
    kind = args[0] if args else ""
    if kind == "words":
        sys.stdout.write("".join(f"{word}\n" for word in next_words(list(args[1:]) or [""])))
    elif kind in scripts:
        sys.stdout.write(scripts[kind])
    else:
        sys.stderr.write(
            'error: name the shell: eval "$(a2d completion bash)" in ~/.bashrc, or '
            'eval "$(a2d completion zsh)" in ~/.zshrc\n'
        )
        raise SystemExit(2)


def next_words(typed: Sequence[str]) -> list[str]:
    """Words that may replace the last one.

    Args:
        typed: what stands behind ``a2d``, the last word in part.
    """
    *before, part = typed
    if not before:
        return [name for name in (*JOBS, "doctor", "completion") if name.startswith(part)]
    if before[0] not in JOBS:
        return [shell for shell in ("bash", "zsh") if shell.startswith(part)]
    if "=" in part:
        return _values(before[0], part)
    words = [*_files(before[0]), *_FLAGS] if not _has_dot(part) else []
    return [word for word in (*_keys(before[0]), *words) if word.startswith(part)]


def _keys(job: str) -> list[str]:
    """``key=`` of every option."""
    model = _config(job)
    fields = ((key, find_field(model, key.split("."))) for key in all_keys(model))
    return [f"{key}=" for key, field in fields if field is not None and section_of(field) is None]


def _values(job: str, part: str) -> list[str]:
    """``key=value`` of an option that takes one of a few values."""
    key, _, value = part.partition("=")
    field = find_field(_config(job), key.split("."))
    return [f"{key}={each}" for each in _choices(field) if each.startswith(value)]


def _choices(field: FieldInfo | None) -> list[str]:
    if field is None:
        return []
    kinds = get_args(field.annotation) or (field.annotation,)
    found = [a for kind in kinds if get_origin(kind) is Literal for a in get_args(kind)]
    if get_origin(field.annotation) is Literal:
        found = list(get_args(field.annotation))
    if bool in kinds:
        found += ["true", "false"]
    return [str(each) for each in found]


def _config(job: str) -> type[BaseModel]:
    found: type[BaseModel] = getattr(config, JOBS[job].config)
    return found


def _files(job: str) -> list[str]:
    """The package's files that the job takes; others are for Ray Serve."""
    known = _config(job).model_fields.keys()
    paths = [*CONFIGS.glob(f"{job}*.yaml"), *CONFIGS.glob(f"{job}/*.yaml")]
    found = {path: yaml.safe_load(path.read_text()) or {} for path in sorted(paths)}
    return [str(path.relative_to(CONFIGS)) for path, keys in found.items() if keys.keys() <= known]


def _has_dot(part: str) -> bool:
    return "." in part and not part.endswith((".y", ".ya", ".yam", ".yaml"))
