"""What people look at and serve: MLflow's runs, the model registry, predictions. MLflow is imported nowhere else.

`store` opens the store; `live` shows a stage while it trains; `runs` publishes what the stages wrote, as the metrics,
tags and texts of `content`; `registry` makes the best probe champion; `champion`, `predict` and `serving` use it.
`MLFLOW_TRACKING_URI` overrides the store, `<root>/mlruns/mlflow.db`.
"""
