"""The only room that optimises weights."""
