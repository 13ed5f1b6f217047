"""What we learn from the log: training sets, models, policies, evaluation, the MLflow registry."""
