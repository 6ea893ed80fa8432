"""Raw content ↔ arrays, shared by training, serving and evaluation.

Here live the `Batch` type and the tokenizers. Not here: files of text, packing, order
(`lmx.data`), and anything that knows a model.
"""
