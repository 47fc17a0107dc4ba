"""What a GPU does with this package: one command, one table, estimates beside what was measured."""
