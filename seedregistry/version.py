"""The version of the library, in a module of its own.

No back room has to import the front door for it.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
