"""Raw file to array: one self-contained file per modality.

A file of this folder offers

    TAKES                                        what an item is, in words
    suffixes() -> names                          how its files' names end
    load(source, ...) -> one item                raises ValueError, which says what is wrong
    arrays(sources, numbers, files, threads)     a batch of arrays; broken items, by their place

and imports numpy, one decoder and nothing of ours: a served pipeline runs a copy of it.
"""
