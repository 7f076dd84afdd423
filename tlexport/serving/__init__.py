"""Triton's world: configuration, repository, releases, servers."""
