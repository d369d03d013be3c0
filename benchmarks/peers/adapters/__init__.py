"""The peers: one module each, imported only in an environment that has the peer."""
