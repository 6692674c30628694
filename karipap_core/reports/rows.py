"""The points of a report as flat rows, and these rows as CSV."""

import csv
import io

from karipap_core.evaluation import scores

COLUMNS = (
    "id",
    "kind",
    "method",
    "label",
    "rule",
    "budget",
    "bytes_kept",
    "kept",
    "kept_blocks",
    "bytes_kept_blocks",
    "parameters",
    "bytes",
    "loss",
    "dense_loss",
    "perplexity",
    "dense_perplexity",
    "bits_per_byte",
    "rise",
    "rise_low",
    "rise_high",
    "rise_error",
    "documents",
    "kl",
    "top1_agreement",
    "relative_error",
    "predicted_rise",
    "tokens",
    "window",
    "stride",
    "text",
    "text_sha256",
    "on_front",
)


def text_of(point: dict) -> dict:
    """The text that a point was measured on: {"name", "sha256"}, empty where it does not say."""
    text = point.get("text")
    return text if isinstance(text, dict) else {}


def rows(document: dict) -> list[dict]:
    """A flat row a point, with the columns of the CSV: `COLUMNS`, then each task's scores and where its difference to
    the dense model lies."""
    tasks = scores.keys([*document["runs"], *document["baselines"]])
    front = {name for group in document["groups"] for name in group["front"]}
    found = []
    for point in [*document["runs"], *document["baselines"]]:
        settings, text = point.get("settings") or {}, text_of(point)
        dense = point.get("dense") or {}
        row = {key: point.get(key) for key in COLUMNS}
        row |= {"rule": settings.get("rule"), "budget": settings.get("budget"), "on_front": point["id"] in front}
        row |= {"dense_loss": dense.get("loss"), "dense_perplexity": dense.get("perplexity")}
        row |= {"predicted_rise": (point.get("predicted") or {}).get("rise")}
        row |= {"text": text.get("name"), "text_sha256": text.get("sha256")}
        row |= {"relative_error": (point.get("fidelity") or point).get("relative_error")}
        for key in tasks:
            held, between = scores.of(point, key), scores.to_dense(point, key)
            row |= {key: held and held[0][held[1]], f"{key}, error": held and scores.error_of(*held)}
            row |= {f"{key}, low": between and between.low, f"{key}, high": between and between.high}
        found.append(row)
    return sorted(found, key=lambda row: (row["bytes_kept"] is None, row["bytes_kept"], row["label"]))


def table_csv(table_rows: list[dict]) -> str:
    """The rows as CSV; text that a spreadsheet would take for a formula gets an apostrophe in front."""
    buffer = io.StringIO(newline="")
    columns = list(dict.fromkeys([*COLUMNS, *(key for row in table_rows for key in row)]))
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    for row in table_rows:
        writer.writerow(
            {key: f"'{v}" if isinstance(v, str) and v[:1] in "=+-@\t\r" and v else v for key, v in row.items()}
        )
    return buffer.getvalue()
