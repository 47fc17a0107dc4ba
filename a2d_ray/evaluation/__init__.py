"""Evaluation: lm-evaluation-harness on our engines, reports, and evaluations over HTTP.

harness/    its models, suites and tasks; a new task is a YAML file in harness/tasks
backends/   who answers: this process, Ray actors, an endpoint; the cache of what was answered
report/     the report's form, its statistics, where its numbers come from
service/    POST /v1/evaluations
"""
