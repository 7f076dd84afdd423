"""How a version comes into service: proven, gated, put back."""
