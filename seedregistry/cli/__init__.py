"""The command line. Needs click and rich: ``pip install 'seedregistry[cli]'``."""

from seedregistry.cli.app import cli, main

__all__ = ["cli", "main"]
