"""What the model becomes: one file per target.

A file of this folder offers

    export(bundle, folder, options) -> Artifact     writes its files into `folder`

The artifact's `options` say what it was made with: `triton`, the release asked for, and, where the
target has them, `opset`, `ir_version` and `triton_oldest`, which the report tells.
"""
