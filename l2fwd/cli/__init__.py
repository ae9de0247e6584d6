"""One module per verb: ``HELP``, ``add_arguments`` and ``run``.

No logic here: a verb is a few lines over a library call a user could make too.  What is slow
to import is imported in ``run``, so that ``--help`` answers at once.
"""

import os
import sys


def silence_stdout() -> None:
    """Send what is still to be printed nowhere: it cannot be written."""
    if sys.stdout is None:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
