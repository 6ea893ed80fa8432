"""Text files and data sets → packed rows of tokens in an order that is arithmetic.

    sources, files, stdlib_corpus   text documents, split and without duplicates
    store                           their tokens on disk, random access
    packing, best_fit               row r of the store
    order                           which row comes when
    pipeline                        all of it behind `prepare` and `Batches`

Not here: tokenizers and the `Batch` type (`lmx.inputs`), devices and meshes.
"""
