"""Which steps of a chain are decisions of the policy that learns, as training goes on.

Steps before them are taken by the frozen policy that was tuned from, steps after them by the policy
that learns, without being taught.

Sources: Ren et al. 2024, DPPO, arXiv:2409.00588, section 4.3 (`last`, its K'); B2-DiffuRL, CVPR
2025 (`growing`); HRF, arXiv:2410.08315 (`sliding`).
"""

from collections.abc import Callable

# (iteration, steps of the chain) -> steps that are decisions
Decided = Callable[[int, int], range]


def last(iteration: int, n_steps: int, *, n_tuned: int | None = None) -> range:
    """The last `n_tuned` steps; all without it.

    Raises:
        ValueError: the chain has not so many.
    """
    n = n_steps if n_tuned is None else n_tuned
    _check(n, n_steps, name="decided.n_tuned")
    return range(n_steps - n, n_steps)


def growing(iteration: int, n_steps: int, *, n_first: int, n_last: int, iterations: int) -> range:
    """The last steps, at first few, and evenly more of them until `iterations` have gone by.

    Raises:
        ValueError: the chain has not so many.
    """
    for name, n in {"n_first": n_first, "n_last": n_last}.items():
        _check(n, n_steps, name=f"decided.{name}")
    if iterations < 1:
        raise ValueError(f"decided.iterations is {iterations}, it must be at least 1")
    n = n_first + round((n_last - n_first) * min(1.0, iteration / iterations))
    return range(n_steps - n, n_steps)


def sliding(iteration: int, n_steps: int, *, width: int, iterations: int) -> range:
    """A window of `width` steps that begins at the last ones and moves to the noisiest ones.

    It moves by one step every `iterations`, and stays at the noisiest.

    Raises:
        ValueError: the chain has not so many steps.
    """
    _check(width, n_steps, name="decided.width")
    if iterations < 1:
        raise ValueError(f"decided.iterations is {iterations}, it must be at least 1")
    first = max(0, n_steps - width - iteration // iterations)
    return range(first, first + width)


def _check(n: int, n_steps: int, *, name: str) -> None:
    """Raise ValueError unless a chain of n_steps has n steps to decide."""
    if not 1 <= n <= n_steps:
        raise ValueError(
            f"{name} is {n}, the chain has {n_steps} steps (chain.sigmas): give 1..{n_steps}"
        )
