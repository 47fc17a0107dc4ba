"""lm-evaluation-harness: models on our backends, suites of tasks, the speed-quality frontier."""
