"""What the model becomes: one file per target.

A file of this folder offers

    export(bundle, folder, options) -> Artifact     writes its files into `folder`
"""
