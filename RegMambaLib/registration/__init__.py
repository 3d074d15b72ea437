"""From two images in scanner space to one world-space transform and its inverse."""
