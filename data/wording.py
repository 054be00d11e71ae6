"""Numbers of things in words."""


def counted(n: int, noun: str) -> str:
    """How many there are: "1 episode", "2 episodes"."""
    return f"{n} {noun}{agree(n, '', 's')}"


def agree(n: int, one: str, many: str) -> str:
    """The form of a word that goes with a number of things."""
    return one if n == 1 else many
