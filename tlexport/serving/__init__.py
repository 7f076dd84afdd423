"""Configuration, repository, releases and servers of Triton."""
