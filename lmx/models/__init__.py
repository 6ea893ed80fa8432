"""Models: arrays in, arrays out. No mesh, no batch, no loss, no file.

Dimensions, here and everywhere in lmx: B batch, L query length, S key length, D width,
N query heads, K key/value heads, G groups (N / K), H head size, F hidden width,
V vocabulary. An array of rank ≥ 2 carries its dimensions in its name: `q_BLNH`.

Logical axes of parameters: `layers`, `vocab`, `position`, `token_type`, `embed`,
`heads`, `kv_heads`, `head_dim`, `mlp`; of activations: `batch`, `length`, `features`,
and the parameter's own name where one is split. `parallel/rules.py` maps them to
devices.

Reading order: decoder.py → block.py → attention.py, mlp.py → linear.py → kernels.py.
"""
