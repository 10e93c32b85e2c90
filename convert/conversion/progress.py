"""Shows how far a conversion is, on standard error: a bar on a terminal, a line every few seconds elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from tqdm import tqdm

_LINE_EVERY_S: Final = 5.0


@contextmanager
def byte_progress(title: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Show progress while the block runs; yields the function to call with bytes just done."""
    if sys.stderr.isatty():
        with tqdm(total=total_bytes, desc=title, unit="B", unit_scale=True, unit_divisor=1000) as bar:
            yield lambda n_bytes: (bar.update(n_bytes), None)[1]
        return
    start_s = last_s = time.monotonic()
    done_bytes = 0

    def update(n_bytes: int) -> None:
        nonlocal done_bytes, last_s
        done_bytes += n_bytes
        now_s = time.monotonic()
        if now_s - last_s >= _LINE_EVERY_S:
            last_s = now_s
            left_s = (now_s - start_s) * (total_bytes - done_bytes) / max(done_bytes, 1)
            share = done_bytes / max(total_bytes, 1)
            print(f"{title}: {share:.0%} of {total_bytes / 1e6:.0f} MB, {left_s:.0f} s left", file=sys.stderr)

    yield update
