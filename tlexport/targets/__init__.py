"""What the model becomes: one file per target.

A file of this folder offers

    export(bundle, folder, options) -> Artifact     writes its files into `folder`

The artifact's `options` say what it was made with: `triton`, the release asked for, and, where the
target has them, `opset`, `ir_version` and `triton_oldest`, which the report tells.

A target whose model can be of a lower precision offers, besides,

    PRECISIONS                                       their names; fp32 is not among them
    lowering(precision, wish) -> Lowering            the model on its way there (`_lowering.py`)
    finish(bundle, folder, lowered, options) -> Artifact    writes its files into `folder`
    open_file(file) -> what answers                  arrays in, arrays out, as they will be served
"""
