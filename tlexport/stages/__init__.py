"""The verbs: one file per command, no click and no print."""
