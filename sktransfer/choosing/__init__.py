"""Which backbone suits a task, whether transfer helps, and what a search costs."""
