"""The whole way on a laptop: what ``make quickstart`` does, stage by stage.

flow.py         the order of the stages, and what is started and stopped
recipe.py       data, objective, optimiser, decoding: the run that was measured
stages.py       finished stages leave a record and are skipped next time
calibration.py  how many steps this machine makes in the minutes that are given
measure.py      exact match of a checkpoint, and the figures of a run
ask.py          Ray Serve and the `openai` client
report.py       the table
"""
