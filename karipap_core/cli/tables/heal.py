"""What healing did as a table in a terminal."""

from karipap_core.statistics.bootstrap import Interval, in_words


def table(document: dict) -> str:
    """What healing did, in lines; of `--show-launch` the commands."""
    if "launch" in document:
        return "\n".join(f"# {name}\n{command}" for name, command in document["launch"].items())
    before, after, dense = (document[key] for key in ("loss_before", "loss_after", "dense_loss"))
    back = ""
    if dense is not None and before > dense:
        back = f" ({(before - after) / (before - dense):.0%} of the rise in loss taken back)"
    lines = [f"loss before  {before:.4f}", f"loss after   {after:.4f}{back}"]
    if dense is not None:
        lines.append(f"dense loss   {dense:.4f}")
    if document["dense_trained"]:
        lines.append(f"dense loss   {document['dense_trained']['loss']:.4f} after the same training")
    rate = "" if document["learning_rate"] is None else f", step size {document['learning_rate']:g}"
    trained = f"{document['trained']:,} numbers trained on {document['text']['name']}"
    lines += [
        f"{document['steps']} steps ({document['objective']}) in {document['seconds']:.0f} s{rate}; {trained}",
        f"losses on {document['validation']['name']}, {document['validation']['tokens']:,} tokens, nats a token",
    ]
    for block in document.get("blocks", ()):
        kept = "" if block["after"] < block["before"] else ", kept as it was"
        lines.append(f"{block['block']}: error of its outputs {block['before']:.4g}, healed {block['after']:.4g}{kept}")
    if document.get("verify"):
        red = [check["name"] for check in document["verify"]["checks"] if not check["ok"]]
        lines.append(f"verified, {'red: ' + ', '.join(red) if red else 'all green'}")
    for point in document.get("points", ()):
        lines.append(f"on {point['text']}: rise {point['rise']:+z.4f}, {point['label']}")
        lines += filter(None, [point.get("text_warning")])
    if document.get("change"):
        lines.append(f"after less before, paired: {in_words(Interval(**document['change']))}")
    return "\n".join([*lines, *document["notes"], document["folder"]])
