"""The language of everything that a person reads: words that do not occur, and the form of an error message."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

# Archaic or inverted English, from the project's language rules; each entry is a regular expression.
FORBIDDEN = (
    r"whoever",
    r"whomever",
    r"whose turn",
    r"for want of",
    r"anew",
    r"mends?",
    r"mended",
    r"hitherto",
    r"ere",
    r"be it",
    r"(?:is|are) nothing to",
    r"as of (?:a|an|the|every|each|all|any)",
    r"of which",
    r"one's own",
    r"a look at",
    r"(?:is|are|was|were) asked for",
    r"makes of",
    r"comes to",
    r"nobody",
    r"somebody",
    r"for ever",
    r"for the sake of",
)
_FORBIDDEN = re.compile(r"(?<![\w\"`-])(?:" + "|".join(FORBIDDEN) + r")(?![\w-])", re.IGNORECASE)

# The verbs with which a remedy begins.
REMEDIES = frozenset(
    [
        "add",
        "allow",
        "ask",
        "build",
        "call",
        "check",
        "choose",
        "clear",
        "close",
        "connect",
        "convert",
        "copy",
        "correct",
        "create",
        "define",
        "delete",
        "disable",
        "do",
        "drop",
        "enable",
        "export",
        "fetch",
        "fill",
        "find",
        "fix",
        "free",
        "give",
        "increase",
        "initialize",
        "install",
        "keep",
        "leave",
        "load",
        "lower",
        "make",
        "move",
        "name",
        "open",
        "pass",
        "pin",
        "put",
        "raise",
        "read",
        "reduce",
        "register",
        "remove",
        "rename",
        "repair",
        "replace",
        "report",
        "restart",
        "restore",
        "resume",
        "run",
        "save",
        "select",
        "send",
        "set",
        "shorten",
        "split",
        "start",
        "stop",
        "switch",
        "train",
        "try",
        "unfreeze",
        "unwrap",
        "update",
        "upgrade",
        "use",
        "wait",
        "wrap",
        "write",
    ]
)
LONGEST = 700


def forbidden(text: str) -> list[str]:
    """Return the forbidden words of a text.

    >>> forbidden("Whoever is late is nothing to it, and there is a remedy")
    ['Whoever', 'is nothing to']
    """
    return [found.group(0) for found in _FORBIDDEN.finditer(re.sub(r"\s+", " ", text))]


def problems_of(message: str) -> list[str]:
    """Return what is wrong with an error message: it says what is wrong, where, and then, after "; ", what to do.

    >>> problems_of("client.lr is -1.0; choose a number greater than 0")
    []
    >>> problems_of("You cannot do that.")
    ['has no remedy after "; "', 'ends with a full stop']
    """
    problems = [f"says '{word}'" for word in forbidden(message)]
    clauses = re.split(r"; |: ", message)[1:]
    if not any(word.lower() in REMEDIES for clause in clauses for word in _first_words(clause)):
        problems.append('has no remedy after "; "')
    if message.endswith("."):
        problems.append("ends with a full stop")
    if len(message) > LONGEST:
        problems.append(f"has {len(message)} characters")
    return problems


def _first_words(clause: str) -> Iterator[str]:
    """Yield the words with which a clause and its alternatives begin: "choose 'cpu', or install a driver"."""
    for part in re.split(r", (?:or|and) |, | or | and | to ", clause):
        word = re.match(r"(?:then |in Python |either )?([A-Za-z]+)", part)
        if word:
            yield word.group(1)


def main(paths: list[Path]) -> None:
    """Print the forbidden words in files, with their places."""
    files = (file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*"))))
    for file in files:
        if file.suffix in {".py", ".md", ".toml"}:
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
                for word in forbidden(line):
                    sys.stdout.write(f"{file}:{number}: {word}\n")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
