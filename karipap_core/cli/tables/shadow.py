"""A shadow run as a table in a terminal."""

from karipap_core.terminal import shortened


def table(document: dict) -> str:
    """A shadow run for a terminal: a row a prompt, then the texts of those that diverge."""
    from karipap_core.terminal import grid, value

    def line(text: str) -> str:
        return value(text.replace("\n", "⏎"))

    rows, texts = [], []
    for number, row in enumerate(document["prompts"], 1):
        at = row["diverges_at"]
        rows.append(
            [f"{number}. {shortened(row['prompt'])}", row["kl"], row["agreement"], "never" if at is None else at]
        )
        if at is not None:
            texts.append(f"{number}. {line(row['prompt'])}")
            for name in ("dense", "compressed"):
                rest = row[name].removeprefix(row["shared"])
                texts.append(f"   {name:11}{line(row['shared'])}⟦{line(rest)}⟧")
    head = f"KL {value(document['kl'])} nats a token, agreement {document['agreement']:.1%}; "
    head += f"{document['diverged']} of {len(document['prompts'])} texts diverge; what differs is in ⟦ ⟧"
    return "\n\n".join(
        filter(None, [head, grid(["prompt", "KL", "agreement", "diverges at token"], rows), "\n".join(texts)])
    )
