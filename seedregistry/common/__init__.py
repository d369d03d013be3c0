"""Common: what every wing may use and that knows none of them.

No door: import the module that is meant.
"""
