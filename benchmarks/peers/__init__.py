"""Fourteen tests of reproducibility, run against this library and its peers.

``python benchmarks/peers/table.py``.

``work`` is what every peer is asked to train, ``peer`` the questions a test may ask, ``adapters``
each peer's answers, written as its documentation tells users to, ``fourteen`` the tests, ``cell``
one test of one peer in a process of its own, ``table`` all of them.
"""
