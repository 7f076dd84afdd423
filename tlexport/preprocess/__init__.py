"""Raw file to array: one self-contained file per modality."""
