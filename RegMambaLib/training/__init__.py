"""Training on synthetic pairs made from label maps, with validation on real ones.

`anatomy` places label maps in one frame, `synthetic` makes pairs of images from them, `validation` scores a
network on real pairs, `trainer` is the loop and `pretrain` the command.
"""
