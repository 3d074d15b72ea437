"""Training on rendered pairs and on prepared data sets, with validation on subjects that are not trained on.

`config` is all that a configuration may say, `config_file` reads it, `tree` checks it. `anatomy` places label maps
in one frame, `shapes` makes some up, `synthetic` renders pairs of images with the tables of `contrast`; `datasets`
holds real ones; `data` mixes both. `objective` is what is minimised, `trainer` the loop, `checkpoint` and `logs` what
it writes, `validation` how it is judged. `structures` trains another network, the one that recognises structures, on
`structure_images`.
"""
