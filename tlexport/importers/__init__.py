"""Models that people already have: one file per kind.

A file of this folder offers

    read(options) -> Imported                  the model, what it takes and answers
    network(bundle) -> torch.nn.Module         the same, built again from a bundle
"""
