"""Throughput suites: ours against peers, on veth pairs or NICs.  ``python -m bench --help``."""
