"""One module per verb: ``HELP``, ``add_arguments`` and ``run``.

No logic here: a verb is a few lines over a library call a user could make too.  What is slow
to import is imported in ``run``, so that ``--help`` answers at once.
"""
