"""Files in and out, always in LPS mm: images, label maps, transforms, points."""
