"""Text of unknown origin for a terminal, a log or a page."""


def printable(value):
    """`value` as one line in which every character shows: a terminal obeys what a control character says.

    Whatever does not print - escape sequences, line breaks, text directions, halves of characters - is spelled out.
    """
    text = str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
