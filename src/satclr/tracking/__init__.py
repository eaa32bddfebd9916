"""Every MLflow call but the registry's: live runs, arm runs, and the store they are kept in.

In: numbers while a stage trains, then the stage outputs. Out: one experiment a profile, one flat arm run
`<arm>-s<seed>` for each arm and seed, with the live runs of its stages as children.

    satclr ui                   the store in the browser
    satclr sync                 the store rebuilt from the stage outputs
    satclr relocate             the store after its folder moved (every command does this by itself)

`MLFLOW_TRACKING_URI` overrides the default, `sqlite:///<root>/mlruns/mlflow.db`.
"""

from satclr.tracking.live import Live, live
from satclr.tracking.publish import publish, publish_report, sync
from satclr.tracking.store import Store, TrackingError, connect, open_store, relocate, tracking_uri
from satclr.tracking.ui import ui

__all__ = [
    "Live",
    "Store",
    "TrackingError",
    "connect",
    "live",
    "open_store",
    "publish",
    "publish_report",
    "relocate",
    "sync",
    "tracking_uri",
    "ui",
]
