"""Options of the benches that can run between NICs."""

from typing import Any


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--link", default="", help="a NIC to test, instead of a veth")
    parser.addoption("--peer", default="", help="the NIC at the other end of its cable")
