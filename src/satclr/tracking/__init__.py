"""What people look at and serve: MLflow's runs, the model registry, predictions. MLflow is imported nowhere else.

`live` shows a stage while it trains; `runs` publishes what the stages wrote; `registry` makes the best probe champion;
`champion`, `predict` and `serving` use it. `MLFLOW_TRACKING_URI` overrides the store, `<root>/mlruns/mlflow.db`.
"""
