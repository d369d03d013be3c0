"""Common: what every room may use, and what knows none of them.

It has no door: import the module that is meant.
"""
