"""The worker: a process that registers for another program, 3D Slicer for one, and stays alive between runs.

`python -m RegMambaLib.worker` reads one JSON object a line on stdin and writes one a line on stdout (UTF-8):

- `{"id", "command": "register", "fixed", "moving", ["fixed_labels", "moving_labels", "fixed_mask", "moving_mask",
  "initial"]: paths, "settings": dict, "output": folder, "mode": "grid" | "composite", "temporary": folder}`;
  with "temporary", the working folder during the request, paths may be relative to it
- `{"id", "command": "info"}` and `{"id", "command": "warmup", "settings": dict}`; `{"command": "quit"}`

Answers: `{"event": "ready"}` once at the start, then for each request `{"id", "event": "progress", "stage", "share",
"total", "eta"}` (shares of the stage and of everything, seconds left or null) and at the end
`{"id", "event": "done", "report", "files"}` or `{"id", "event": "error", "kind": "input" | "memory" | "missing" |
"crash", "message"}`. What else is printed goes to stderr. The end of stdin ends the process at once and removes the
`temporary` folder of the run. Images are in LPS world space, as SimpleITK reads them.
"""
