"""What is behind the RegMamba module: MRML nodes to files and back, the worker process, the panel."""
