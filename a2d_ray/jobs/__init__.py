"""Programs of the jobs, a file each; their configurations; and the command `a2d`.

table.py       the jobs: what each is for, what it takes, and how an interrupted one goes on
run.py         runs one by its name; ``jobs/NAME.py`` of the repository calls it
command.py     ``a2d JOB ...``, ``a2d doctor``, ``a2d completion``
doctor.py      what this machine has, and what will not work on it
completion.py  jobs, files and keys for bash and zsh
configs/       a file per job, whose values are its defaults, and larger ones to start from
"""
