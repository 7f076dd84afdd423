"""Pure numbers: no files, no clocks of its own."""
