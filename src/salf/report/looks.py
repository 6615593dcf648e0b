"""How curves look: the same colours, marks and line styles in the page and in picture files."""

from dataclasses import dataclass

# Colours that people with every kind of colour vision can tell apart (Okabe and Ito, 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")

# Marks: matplotlib's name, and the same shape as an SVG path around the origin.
MARKS = {
    "o": "M-4.5 0A4.5 4.5 0 1 0 4.5 0A4.5 4.5 0 1 0-4.5 0Z",
    "s": "M-4-4H4V4H-4Z",
    "D": "M0-5.5L5.5 0L0 5.5L-5.5 0Z",
    "^": "M0-5.5L5 4H-5Z",
    "v": "M0 5.5L5-4H-5Z",
    "P": "M-5-1.7H-1.7V-5H1.7V-1.7H5V1.7H1.7V5H-1.7V1.7H-5Z",
    "X": "M-5-5L0-1.8L5-5L1.8 0L5 5L0 1.8L-5 5L-1.8 0Z",
}

# Line styles: matplotlib's name, and the dashes of an SVG line.
LINES = {"-": "none", "--": "8 4", "-.": "9 3 2 3", ":": "2 3"}


@dataclass(frozen=True)
class Look:
    """The look of one curve.

    Attributes:
        number: The place of the colour in `COLOURS`.
        colour: The colour, as in HTML.
        mark: The mark's name in matplotlib.
        shape: The mark as an SVG path.
        line: The line style's name in matplotlib.
        dashes: The dashes of an SVG line.
    """

    number: int
    colour: str
    mark: str
    shape: str
    line: str
    dashes: str

    @classmethod
    def of(cls, place: int) -> "Look":
        """Return the look of the curve at a place, counted from 0; 28 curves look different.

        >>> Look.of(0).line, Look.of(8).line, Look.of(8).number
        ('-', '--', 1)
        """
        number = place % len(COLOURS)
        return cls(
            number,
            COLOURS[number],
            *list(MARKS.items())[number],
            *list(LINES.items())[place // len(COLOURS) % len(LINES)],
        )
