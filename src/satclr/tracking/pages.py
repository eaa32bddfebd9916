"""The pages of MLflow's UI as people open them: which runs, which columns, in which order.

MLflow keeps a saved view as an experiment tag; `satclr ui` opens the first, and the menu Views lists both.
"""

from __future__ import annotations

import json
from typing import Any

CURRENT = "tags.`satclr.state` = 'current' and tags.`satclr.kind` = 'arm'"
COLUMNS = (
    "metrics.`test/mAP`",
    "metrics.`test/mAP_lo`",
    "metrics.`test/mAP_hi`",
    "metrics.`test/micro_mAP`",
    "metrics.`val/mAP`",
    "metrics.`best_epoch`",
    "tags.`satclr.arm`",
    "tags.`satclr.seed`",
    "attributes.`Dataset`",
    "attributes.`Models`",
    "attributes.`Description`",
)
ARM_RUNS, BY_ARM = "satclr-arm-runs", "satclr-by-arm"


def experiment_tags(profile: str) -> dict[str, str]:
    """Return the tags of a profile's experiment: its kind, its description, its two saved views."""
    by_arm = {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "satclr.arm"}]}
    return {
        "mlflow.experimentKind": "custom_model_development",  # else the UI opens as for language models
        "mlflow.note.content": (
            f"Arms of profile `{profile}`. **Views → Arm runs** lists the present run of each arm and seed,"
            " best test mAP first; **Views → Arms, mean over seeds** groups them. Runs of earlier settings are"
            " tagged `satclr.state = superseded`; live runs of the stages are children of their arm run."
        ),
        f"mlflow.sharedViewState.{ARM_RUNS}": _saved("Arm runs", None),
        f"mlflow.sharedViewState.{BY_ARM}": _saved("Arms, mean over seeds", by_arm),
    }


def runs_page(base: str, experiment_id: str, view: str = ARM_RUNS) -> str:
    """Return the address of a saved view of an experiment."""
    return f"{base}/#/experiments/{experiment_id}/runs?viewStateShareKey={view}&workflowType=machine_learning"


def _saved(name: str, group_by: dict[str, Any] | None) -> str:
    state = {
        "searchFilter": CURRENT,
        "orderByKey": COLUMNS[0],
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": list(COLUMNS),
        "columnOrder": list(COLUMNS),
        "groupBy": group_by,
        "runsHiddenMode": "SHOW_ALL",
    }
    return json.dumps({"name": name, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)})
