"""Every public class of the library has a doctest, and each of them runs."""

import doctest

import pytest

import l2fwd
from conftest import ON_LINKS

CLASSES = ("Umem", "XdpSocket", "MultiQueueSocket", "Batch", "SocketStats")


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_has_a_doctest_that_is_not_skipped(name):
    kind = getattr(l2fwd, name)
    assert kind.__module__ in ON_LINKS
    (found,) = (
        each for each in doctest.DocTestFinder(recurse=False).find(kind, name) if each.examples
    )
    assert not any(doctest.SKIP in example.options for example in found.examples)
    assert "+SKIP" not in kind.__doc__
