"""Integrations: what a framework needs beyond the loader and the streams themselves.

Each needs that framework.
"""

__all__ = ()
