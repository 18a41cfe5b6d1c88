"""Two-way conversion between stores and what the field has on disk.

| format     | on disk                                | boxes, sizes | classes | type of the features | order |
|------------|----------------------------------------|--------------|---------|----------------------|-------|
| `original` | `{split}_ims.npy`, `_caps.txt`, `_ids.txt` |          |         | kept                 | kept  |
| `tsv`      | Caffe's six columns                    | yes          |         | float32              | kept  |
| `tsv10`    | LXMERT's ten columns                   | yes          | yes     | float32              | kept  |
| `npz`      | one .npz an image                      | yes          | yes     | float32              | by id |
| `hdf5`     | one file of the VQA code               | yes          | yes     | float32              | kept  |

What a format holds comes back bit for bit; float16 features are widened to float32 exactly where it says float32. Each module
describes its format; `convert` holds the two ways.
"""
