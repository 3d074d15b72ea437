"""Grids, warping, composing, inverting and Jacobians of displacements, and their conversion to ITK transforms.

Conventions, used everywhere in the library:

- World space is LPS in mm, as in ITK.
- An image array has axes (k, j, i), as `SimpleITK.GetArrayFromImage` gives it.
- A *voxel displacement* is float32, shape (3, k, j, i), channels in the order of the array axes (k, j, i), in
  voxels of its grid: `moved[x] = moving[x + u[x]]`.
- A *displacement in mm* is float, shape (k, j, i, 3), channels (x, y, z) in LPS mm.
"""
