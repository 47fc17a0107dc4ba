"""Checkpoints for the servers of other projects.

`sdar` writes a directory in SDAR's format, `refusals` say why a checkpoint has no place there, and
`probe` looks at what was written the way those servers will. Public entry: `sdar.export_sdar`.
"""
