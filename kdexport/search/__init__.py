"""A budget in, a student out: candidates are measured first, and only those within the budget are trained."""
