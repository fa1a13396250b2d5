"""A run: the schedule of tasks, its folder, training, evaluation, prediction."""
