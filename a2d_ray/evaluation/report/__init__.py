"""Reports: JSON with everything to repeat them, Markdown to read, intervals and paired tests."""
