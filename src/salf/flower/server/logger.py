"""The log of a federation's server, in which text from a node stays on one line."""

import logging

log = logging.getLogger("flwr.salf")  # below Flower's own logger, whose handlers print it

_LONGEST = 2000  # characters of a reason; how long the reason is, a node decides


def warn_of_node(context: str, node: int, reason: str) -> None:
    """Log a warning about a node.

    Args:
        context: The part of the run, such as `round 3`.
        node: The node's id.
        reason: What is wrong. It may contain text from the node.
    """
    log.warning("%s: node %d: %s", context, node, one_line(reason))


def one_line(text: str) -> str:
    r"""Return a text as one line of printable characters, so that a node cannot forge lines of the log.

    >>> one_line("no memory\nround 3: all is well")
    'no memory round 3: all is well'
    """
    printable = "".join(character if character.isprintable() else " " for character in text[: _LONGEST + 1])
    return printable if len(text) <= _LONGEST else f"{printable[:_LONGEST]}…"
