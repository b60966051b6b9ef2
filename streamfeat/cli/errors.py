"""How a command ends when something is wrong: one line and an exit code, or the traceback with --debug."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click

FAILED, WRONG_USAGE = 1, 2


@contextmanager
def one_line(*expected: type[BaseException], code: int = WRONG_USAGE, debug: bool = False) -> Iterator[None]:
    """Turn the ``expected`` errors into one line on standard error and exit with ``code``."""
    try:
        yield
    except expected as error:
        if debug:
            traceback.print_exception(error)
        stop(str(error), code)


def stop(message: str, code: int) -> NoReturn:
    """Print one line that says what is wrong, and exit."""
    click.echo(f"streamfeat: {' '.join(message.split())}", err=True)
    sys.exit(code)
