"""What a job shows: its progress, warnings that the user can act on, and its result.

streams.py   the terminal is ours; what libraries print goes to a log file
notices.py   what reaches the terminal of a library's output, and of our own code in workers
progress.py  one progress bar; in a pipe, a line now and then

Where no job took the terminal over (Python programs, tests), all of it writes to ``sys.stdout`` and
``sys.stderr``.
"""
