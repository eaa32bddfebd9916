"""The model card of a version, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping

from satclr.tracking.outputs import Outputs, headline, table

LENGTH = 5000  # characters a registry keeps of a description


def write(found: Outputs, tags: Mapping[str, str]) -> str:
    """Return the card: intended use, data, metrics by label, limits, licence."""
    m = found.metrics
    without = ", ".join(m.get("labels_without_positives", [])) or "none"
    head = f"""{headline(found)}

**Intended use.** Labels of overhead image tiles of the kind it was trained on: several labels a tile, no \
positions. Not for decisions about people or places without someone looking at the picture.

**Input and output.** JPEG or PNG bytes; a probability for each label and the labels above their threshold.

**Data.** `data/{found.profile}`, DVC md5 `{tags["satclr.data_md5"]}`; commit \
`{tags.get("mlflow.source.git.commit", "none")}`, fingerprint `{tags["satclr.fingerprint"]}`.

**Limits.** The interval is over tiles of one test split, not over places, sensors or seasons. No test \
positives, hence unknown quality: {without}. Chosen on validation mAP {m["val_mAP"]:.4f}.

**Licence.** Code MIT. The weights carry the terms of the data and initial weights they were trained from.

"""
    lines = ["| label | test AP | 95% interval | positives |", "| --- | --- | --- | --- |"]
    for row in table(found.results / "per_class_ap.csv"):
        ap = (
            f"{float(row['AP']):.3f} | {float(row['AP_lo']):.3f} to {float(row['AP_hi']):.3f}" if row["AP"] else "– | –"
        )
        lines.append(f"| {row['label']} | {ap} | {row['positives']} |")
    while len(head) + len("\n".join(lines)) > LENGTH - 60:
        lines = [*lines[:-2], "(more in the run's per_class_ap.csv)"]
    return head + "\n".join(lines)
